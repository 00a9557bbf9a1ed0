"""The command as a user types it: a process, its stdout, its stderr and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deit_zoo.cli.app import app as app
from deit_zoo.cli.app import let_the_first_speak
from support.command import deit_zoo, sentence
from support.typed import Done

MODEL = "deit_pico_distilled_digits"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list"], ["info", "deit_s"], ["reproduce", "deit_s", "--gpus=8", "--dry-run"]],
    ids=" ".join,
)
def test_a_command_that_needs_no_model_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom deit_zoo.cli import main\n"
        f"sys.argv = ['deit-zoo', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "heavy = {'torch', 'timm', 'PIL', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("classify no.jpg no.png", "no.jpg does not exist"),
        ("classify no.jpg --output a.csv", "no.jpg does not exist"),
        ("evaluate deit_small --data nowhere", "nowhere does not exist"),
        ("evaluate deit_small --data . --beside deit_smal", "no model is named 'deit_smal'"),
        ("attention . --layer 12", "layer is 12, but deit_small has 12 layers"),
        ("export deit_small --to pt2 --images no.jpg", "no.jpg does not exist"),
    ],
)
def test_a_slip_is_told_before_the_weights_are_fetched(
    typed: Callable[..., Done], words: str, message: str
) -> None:
    done = typed(*words.split())  # there is no network, so weights would say so
    assert (done.error or done.err.removeprefix("error: ")).startswith(message)


def test_list_shows_every_model_with_its_figures() -> None:
    done = deit_zoo("list")
    assert done.status == 0
    assert len(done.out.splitlines()) == 39
    rows = [line.split() for line in done.out.splitlines()]
    assert ["deit_small", "79.85", "22.1M", "4.61", "224", "in1k", "pinned", "–"] in rows
    assert ["cait_xxs24_224", "78.40*", "12.0M", "2.53", "224", "in1k", "pinned", "–"] in rows
    assert [rows[-2][0], *rows[-2][5:]] == ["deit_tiny_distilled", "in1k", "hub", "–"]
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.err == (
        "* measured by timm with this transform, for which the authors published no figure\n"
        "proof: SHA-256 pinned, stated by the Hub, known by its prefix, or none\n"
        "here: weights embedded in the package, cached, or carried to this machine\n"
        "recipes partly assumed, for what nobody published: 23 of 38; `deit-zoo info NAME` says "
        "which values, and why\n"
    )


def test_list_filters_and_sorts() -> None:
    done = deit_zoo("list", "deit_*", "--min-top1", "80", "--sort", "top1", "--max-params", "90")
    names = [line.split()[0] for line in done.out.splitlines()[1:]]
    assert [name for name in names if "digits" not in name] == [
        "deit_base_distilled_384",
        "deit_base_distilled",
        "deit_base_384",
        "deit_base",
        "deit_small_distilled",
    ]


def test_list_as_json_is_data() -> None:
    rows = json.loads(deit_zoo("list", "deit_small", "--json").out)
    assert [row["name"] for row in rows] == ["deit_small", "deit_small_distilled"]
    assert rows[0]["checkpoint"]["metrics"]["imagenet1k_val"]["top1"] == 79.854
    assert rows[0]["here"] is None


def test_info_tells_sources_digests_licence_and_transform() -> None:
    out = deit_zoo("info", "deit-s").out
    for part in (
        "22,050,664 parameters, 4.61 GMACs at 224 px",
        "crop_pct 0.875, bicubic, 224 px",
        "timm/deit_small_patch16_224.fb_in1k",
        "91327a9c99f98fe6b524cd4d397b7226b80e1365",
        "1e747b4a8d0df2cfbd3c450e8c97685d867448ab0c2ddbfb34b6885f5cb23e5b",
        "cd65a155… (prefix only)",
        "apache-2.0",
    ):
        assert part in out


def test_info_tells_commit_and_digest_apart() -> None:
    rows = [line.split("  ") for line in deit_zoo("info", "deit-b-384").out.splitlines()]
    values = [(row[1].strip(), row[-1].strip()) for row in rows if not row[0]]
    assert values == [
        ("commit", "f3343093d6d86e5a644980dfde086eadd708cdf4"),
        (
            "SHA-256",
            "not known beforehand: the digest that the Hub states is checked and recorded",
        ),
        ("SHA-256", "8de9b5d1… (prefix only)"),
    ]
    # Of one .pth the whole digest is public.
    whole = "79d5ec0c4ae73dc6810aff18efae8cb50de05523d16ca904bf42975a65b39271"
    assert f"  {whole}\n" in deit_zoo("info", "deit3_base_in21k").out
    out = deit_zoo("info", "cait_s24").out
    assert "not known: the newest is taken" in out
    assert "none is published" in out


def test_a_wrong_name_gets_the_three_nearest() -> None:
    assert sentence(deit_zoo("info", "deit_tinny")) == (
        "no model is named 'deit_tinny'; did you mean deit_tiny, deit_tiny_distilled or "
        "deit3_base? `deit-zoo list` shows all 38"
    )


def test_debug_shows_the_traceback() -> None:
    done = deit_zoo("info", "deit_tinny", "--debug")
    assert done.status == 2
    assert "Traceback" in done.err
    assert "UnknownModelError" in done.err


def test_another_programs_word_for_a_command_is_answered_by_ours(
    typed: Callable[..., Done],
) -> None:
    assert typed("predict", "a.jpg").error == "no command is 'predict'; type deit-zoo classify"
    assert typed("version").error == "no command is 'version'; type deit-zoo --version"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["classify"], "missing argument 'images'; type as in deit-zoo classify photo.jpg "),
        (["weights", "download"], "no such command 'download'; "),
        (["fine-tune"], "no such command 'fine-tune'. Did you mean 'finetune'; "),
        (["--json", "list"], "no such option: --json (Possible options: --version); "),
        (["evaluate", "--topk"], "no such option: --topk"),
        (["classify", "a.png", "--topk"], "option '--topk' requires an argument; "),
    ],
)
def test_what_is_no_command_option_or_argument_is_one_sentence_with_what_to_type(
    typed: Callable[..., Done], words: list[str], said: str
) -> None:
    done = typed(*words)
    assert done.error is not None
    assert done.error.startswith(said)
    assert done.error.endswith(" -h says what can be typed")


def test_no_word_at_all_is_answered_by_the_help(typed: Callable[..., Done]) -> None:
    done = typed()
    assert (done.status, done.error) == (2, None)
    assert "classify" in done.out


def test_help_is_broken_into_lines_by_the_terminal_alone(typed: Callable[..., Done]) -> None:
    said = "published one by more than another machine explains; 130: stopped by Ctrl-C."
    assert said in typed("evaluate", "--help").out


def test_a_model_that_is_not_cached_says_what_to_do_offline() -> None:
    message = sentence(deit_zoo("classify", __file__, "--model", "deit_tiny"))
    assert message.startswith("the weights of deit_tiny are not on this machine")
    assert message.endswith(
        "`deit-zoo weights fetch deit_tiny --to DIR`, bring DIR here and set DEIT_ZOO_WEIGHTS=DIR"
    )


def test_evaluate_shows_the_recorded_figures_beside_the_measured(tmp_path: Path) -> None:
    assert deit_zoo("data", "digits", "--output", tmp_path / "digits").status == 0
    done = deit_zoo("evaluate", MODEL, "--data", tmp_path / "digits", "--json")
    row = json.loads(done.out)
    assert row["num_images"] == 360
    assert row["top1"]["measured"] == pytest.approx(row["top1"]["published"], abs=0.3)


def test_a_dry_run_prints_the_plan_of_eight_gpus() -> None:
    done = deit_zoo("reproduce", "deit_s", "--gpus", "8", "--dry-run")
    assert done.status == 0
    assert "300 epochs of 1,251 steps, 427,008 different images, each shown 3 times" in done.out
    assert "1024 = 8 replicas x 128" in done.out


PLANNED = ("reproduce", "deit_s", "--gpus=4", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "regnety_160", "--gpus=8"], "no recipe for regnety_160_deit"),
        (["reproduce", "deit_s", "--gpus=3", "--dry-run"], "the nearest number that can is"),
        ([*PLANNED, "--set", "img_size=225"], "cannot be cut into patches of 16x16; the nearest"),
        ([*PLANNED, "--set", "init_from=nothing.pth"], "which is no model, no recipe and no file"),
        (["reproduce", "deit_s", "--gpus=0"], "type --data DIR"),
        (
            ["reproduce", "deit_s", "--gpus=8", "--set", "lr"],
            "lr has no value; type --set lr=",
        ),
        ([*PLANNED, "--learning-rate", "0.1"], "is called 'learning_rate'; did you mean lr?"),
        ([*PLANNED, "--reprob", "0"], "is called 'reprob'; did you mean random_erasing?"),
        ([*PLANNED, "--drop-path=0.2"], "is called 'drop_path'; did you mean drop_path_rate?"),
        ([*PLANNED, "--bce-loss"], "--bce-loss has no value; type --set loss=VALUE"),
        (["evaluate", MODEL, "--data", "absent"], "absent does not exist; give a folder"),
        (["list", "--sort", "size"], "sort is 'size'; give one of name, top1"),
    ],
)
def test_a_wrong_word_is_answered_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    assert message in sentence(deit_zoo(*arguments, cwd=tmp_path))


def test_an_unknown_option_exits_2() -> None:
    assert deit_zoo("list", "--frobnicate").status == 2


def test_of_several_processes_the_first_tells_an_error_and_the_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setenv("RANK", "0")
    assert (let_the_first_speak(), waits) == ("error", [])
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)  # a job's RANK alone is not torchrun's
    assert (let_the_first_speak(), waits) == ("error", [])
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (let_the_first_speak(), waits) == ("error of process 3", [10.0])
