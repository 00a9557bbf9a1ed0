"use strict";
(() => {
  const zoo = JSON.parse(document.getElementById("zoo").textContent);
  const byId = (id) => document.getElementById(id);
  const filters = byId("filters"), axisChoice = byId("axis"), canvas = byId("chart");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 600;  // pixels of a chart in which sizes would lie upon each other
  const shown = (number) => number.toLocaleString("en", {maximumSignificantDigits: 5});

  // Fold-outs leave the page when they are closed, so they are kept here.
  const abouts = new Map([...byId("abouts").children].map((about) => [about.id.slice(6), about]));
  byId("abouts").remove();

  const table = new DataTable("#models", {
    paging: false,
    autoWidth: false,
    order: [],
    layout: {topStart: null, topEnd: null, bottomStart: null, bottomEnd: null},
    columnDefs: [
      {targets: 1, orderSequence: ["desc", "asc"]},
      {targets: "_all", orderSequence: ["asc", "desc"]},
    ],
  });
  const nameOf = (index) => table.row(index).node().dataset.name;

  function passes(model) {
    for (const field of filters.elements) {
      const value = field.value.trim();
      if (!field.name || value === "") continue;
      const own = model[field.name];
      if (field.name === "search") {
        if (!model.names.includes(value.toLowerCase().replaceAll("-", "_"))) return false;
      } else if (field.dataset.bound === "least") {
        if (own === null || own < Number(value)) return false;
      } else if (field.dataset.bound === "most") {
        if (own === null || own > Number(value)) return false;
      } else if (String(own) !== value) return false;
    }
    return true;
  }
  table.search.fixed("filters", (text, values, index) => passes(zoo.models[nameOf(index)]));
  const visible = () => table.rows({search: "applied"}).indexes().toArray().map(nameOf);

  function unfold(name, open) {
    const row = table.row(`[data-name="${CSS.escape(name)}"]`);
    const about = abouts.get(name), button = row.node().querySelector(".fold");
    button.setAttribute("aria-expanded", String(open));
    if (!open) {
      button.removeAttribute("aria-controls");
      row.child.hide();
      return;
    }
    row.child(about, "about").show();
    button.setAttribute("aria-controls", about.id);
    const curve = about.querySelector("[data-curve]");
    if (curve && !Chart.getChart(curve)) drawCurve(curve, zoo.models[name].curve);
  }
  byId("models").addEventListener("click", (event) => {
    const button = event.target.closest(".fold");
    if (!button) return;
    const name = button.closest("tr").dataset.name;
    unfold(name, button.getAttribute("aria-expanded") === "false");
  });

  // An address that ends in #deit_small opens that model.
  function goTo(name) {
    if (!abouts.has(name)) return;
    if (!passes(zoo.models[name])) filters.reset();
    table.draw();
    unfold(name, true);
    byId(name).scrollIntoView({block: "start"});
    byId(name).focus({preventScroll: true});
  }
  const goToAddress = () => goTo(location.hash.slice(1));

  function takeColours() {
    const style = getComputedStyle(document.documentElement);
    Chart.defaults.color = style.getPropertyValue("--faint").trim();
    Chart.defaults.borderColor = style.getPropertyValue("--line").trim();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  }

  function drawCurve(place, points) {
    new Chart(place, {
      type: "line",
      data: {datasets: [{
        data: points.map(([epoch, top1]) => ({x: epoch + 1, y: top1})),
        borderColor: "#0072B2", backgroundColor: "#0072B2", borderWidth: 1.5, pointRadius: 1.5,
      }]},
      options: {
        animation: false, maintainAspectRatio: false,
        plugins: {legend: {display: false}},
        scales: {
          x: {type: "linear", title: {display: true, text: "epoch"}, ticks: {precision: 0}},
          y: {title: {display: true, text: "top-1 %"}},
        },
      },
    });
  }

  // The size of each point beside it, unless another's is there.
  const sizes = {
    id: "sizes",
    afterDatasetsDraw(chart) {
      const {ctx, chartArea} = chart, taken = [];
      if (chart.width < NARROW) return;
      ctx.save();
      ctx.font = `11px ${Chart.defaults.font.family}`;
      chart.data.datasets.forEach((dataset, number) => {
        if (!chart.isDatasetVisible(number)) return;
        ctx.fillStyle = Chart.defaults.color;
        chart.getDatasetMeta(number).data.forEach((point, index) => {
          const text = zoo.models[dataset.data[index].name].size;
          const box = {x: point.x + 7, y: point.y - 5, w: ctx.measureText(text).width, h: 11};
          if (box.x + box.w > chartArea.right) box.x = point.x - 7 - box.w;
          const meets = (b) =>
            box.x < b.x + b.w && b.x < box.x + box.w && box.y < b.y + b.h && b.y < box.y + box.h;
          if (taken.some(meets)) return;
          taken.push(box);
          ctx.fillText(text, box.x, box.y);
        });
      });
      ctx.restore();
    },
  };

  // One data set at a time: percent of digits are not percent of ImageNet.
  function pointsOf(axis) {
    const known = visible().filter((name) => name in axis.values && zoo.models[name].top1 !== null);
    const large = known.filter((name) => zoo.models[name].dataset !== "digits");
    return (large.length ? large : known).map((name) => (
      {name, x: axis.values[name], y: zoo.models[name].top1}
    ));
  }

  function seriesOf(points) {
    const series = Map.groupBy(points, (point) => zoo.models[point.name].series);
    return [...series].sort().map(([label, data]) => {
      const {colour, pixels} = zoo.models[data[0].name];
      const distilled = label.includes("distilled"), pretrained = label.includes("21k");
      return {
        label,
        data: data.sort((a, b) => a.x - b.x),
        showLine: true,
        borderColor: colour,
        borderWidth: 1.5,
        borderDash: pretrained ? [5, 4] : [],
        pointStyle: distilled ? "rectRot" : pretrained ? "triangle" : "circle",
        pointRadius: distilled || pretrained ? 6 : 4.5,
        pointHoverRadius: 8,
        backgroundColor: pixels > 224 ? "transparent" : colour,
      };
    });
  }

  const isRound = ({value}) => [1, 2, 5].includes(Number(value.toExponential(3).split("e")[0]));

  // From one of 1, 2, 5, 10, 20, ... to another.
  function bounds(values) {
    if (!values.length) return {};
    const low = Math.min(...values), high = Math.max(...values);
    const steps = (value) => [1, 2, 5, 10].map((s) => s * 10 ** Math.floor(Math.log10(value)));
    return {
      min: steps(low).findLast((step) => step <= low),
      max: steps(high).find((step) => step >= high),
    };
  }

  let chart = null;
  function drawChart() {
    const axis = zoo.axes[Number(axisChoice.value)];
    const points = pointsOf(axis);
    const dataset = points.length ? zoo.models[points[0].name].dataset : "";
    const narrow = canvas.parentNode.clientWidth < NARROW;
    chart?.destroy();
    takeColours();
    chart = new Chart(canvas, {
      type: "scatter",
      data: {datasets: seriesOf(points)},
      plugins: [sizes],
      options: {
        animation: false,
        maintainAspectRatio: false,
        onClick: (event, [item]) => {
          if (item) goTo(chart.data.datasets[item.datasetIndex].data[item.index].name);
        },
        onHover: (event, items) => { canvas.style.cursor = items.length ? "pointer" : ""; },
        scales: {
          x: {
            type: "logarithmic",
            title: {display: true, text: narrow ? axis.unit : `${axis.unit}: ${axis.title}`},
            ...bounds(points.map((point) => point.x)),
            afterBuildTicks: (scale) => { scale.ticks = scale.ticks.filter(isRound); },
            ticks: {callback: shown, maxRotation: 0, autoSkipPadding: 12},
          },
          y: {title: {display: true, text: `top-1 on ${dataset}, %`}, grace: "4%"},
        },
        plugins: {
          legend: {
            position: "bottom",
            labels: {usePointStyle: true, boxHeight: 7, font: {size: narrow ? 10 : 12}},
          },
          tooltip: {callbacks: {
            label: ({raw}) => `${raw.name}: ${shown(raw.y)} %, ${shown(raw.x)} ${axis.unit}`,
          }},
        },
      },
    });
    const names = points.map((point) => `${point.name} ${shown(point.y)} % at ${shown(point.x)}`);
    canvas.setAttribute("aria-label", `Top-1 against ${axis.unit}, ${axis.title}: ${names.join("; ")}`);
    byId("chart-source").textContent =
      `${points.length} of ${visible().length} models have a place here. Source: ${axis.source}.`;
  }

  function update() {
    const number = visible().length, total = Object.keys(zoo.models).length;
    byId("count").textContent = number === total ? `${total} models` : `${number} of ${total} models`;
    drawChart();
  }
  // The first axis is of the user's own machine, if there is one; else that with the most models.
  const places = zoo.axes.map((axis) => (axis.unit === "images/s" ? pointsOf(axis).length : 0));
  const own = zoo.axes[0].source.startsWith("measured");
  axisChoice.value = String(own ? 0 : places.indexOf(Math.max(...places)));

  filters.addEventListener("submit", (event) => event.preventDefault());
  for (const event of ["input", "change"]) filters.addEventListener(event, () => table.draw());
  byId("all").addEventListener("click", () => {
    filters.reset();
    table.draw();
  });
  axisChoice.addEventListener("change", drawChart);
  table.on("search", update);
  dark.addEventListener("change", () => {
    drawChart();
    for (const [name, about] of abouts) {
      const place = about.querySelector("[data-curve]");
      const drawn = place && Chart.getChart(place);
      if (!drawn) continue;
      drawn.destroy();
      drawCurve(place, zoo.models[name].curve);
    }
  });
  addEventListener("hashchange", goToAddress);
  table.draw();
  update();
  goToAddress();
})();
