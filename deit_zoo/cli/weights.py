"""`deit-zoo weights`: fetch, verify, convert, pin, publish. Data to stdout, talk to stderr."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, out, print_error, print_json, print_table, talk
from deit_zoo.cli.options import AsJson, complete_name, example, path, path_option
from deit_zoo.cli.program import Commands
from deit_zoo.errors import IntegrityError, ZooError
from deit_zoo.files import LABEL_FACTS_FILE, expand_user
from deit_zoo.manifest import manifest_path, manifest_record, read_manifest
from deit_zoo.registry.names import is_path, resolve

if TYPE_CHECKING:
    from deit_zoo.hub.verify import VerifyResult

MB = 1e6

weights_app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Checkpoints: fetch, verify, convert, pin, publish."
)


@weights_app.command("fetch", epilog=example("weights fetch deit_small --to carried"))
def fetch_(
    names: Annotated[
        list[str], typer.Argument(help="Models, in any spelling.", autocompletion=complete_name)
    ],
    to: Annotated[Path | None, path_option("A folder that works without a network.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring checkpoints to this machine, verified; with --to as folders to carry elsewhere."""
    records = [manifest_record(resolve(name).name) for name in names]
    records = list({record.name: record for record in records}.values())
    from deit_zoo.hub.carry import check_free, write_folder
    from deit_zoo.hub.verify import CachedFile
    from deit_zoo.weights.load import resolve_file

    targets = [to if to is None or len(records) == 1 else to / one.name for one in records]
    for record, target in zip(records, targets, strict=True):
        if target is not None:
            check_free(record.name, target)
    rows: list[dict[str, Any]] = []
    for record, target in zip(records, targets, strict=True):
        file = CachedFile.of(record.name, resolve_file(record))
        size = file.path.stat().st_size
        if target is not None:
            with Bar(record.name, size=size) as bar:
                write_folder(file, target, bar.advance)
        where = str(target or file.path)
        rows.append({"name": record.name, "where": where, "bytes": size, "proof": file.proof})
    if as_json:
        print_json(rows)
        return
    cells = [(row["name"], f"{row['bytes'] / MB:.1f}", row["proof"], row["where"]) for row in rows]
    print_table([("name", "MB", "proof", "where"), *cells], right=(1,))


@weights_app.command("verify", epilog=example("weights verify"))
def verify_(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, runs, or folders that fetch --to made; all unless given.",
            autocompletion=complete_name,
        ),
    ] = None,
    key: Annotated[
        Path | None, path_option("A public key; folders must be signed with its other half.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte that is on this machine, without the network; exit 1 if one is wrong."""
    from deit_zoo.hub.sign import check_signature
    from deit_zoo.hub.verify import files_of, verify_file

    folders = [expand_user(word) for word in names or () if expand_user(word).is_dir()]
    if key is not None and (not names or len(folders) < len(names)):
        raise ZooError("--key proves folders; give some, and no names of models")
    listed = [(word, files_of(word)) for word in names or read_manifest()]
    paths = [file.path for _, files in listed for file in files if file.path.is_file()]
    rows: list[tuple[str, VerifyResult | None]] = []
    with Bar("verifying", size=sum(path.stat().st_size for path in paths)) as bar:
        for word, files in listed:
            rows += [(word, verify_file(file, bar.advance)) for file in files]
            if not files:
                rows.append((resolve(word).name, None))
    facts = [_as_dict(name, result) for name, result in rows]
    if as_json:
        print_json(facts)
    else:
        cells = [("name", "verdict", "MB", "proof", "where")]
        for fact in facts:
            size = f"{fact['bytes'] / MB:.1f}" if "bytes" in fact else "–"
            where = (fact.get("proof", "–"), fact.get("file", "–"))
            cells.append((fact["name"], fact["status"], size, *where))
        print_table(cells, right=(2,), styles={"wrong": "bold red"})
    problems = [result.problem for _, result in rows if result and result.problem]
    if key is not None:
        for folder in folders:
            try:
                check_signature(folder, key)
            except IntegrityError as error:
                problems.append(str(error))
            else:
                talk.print(escape(f"{folder} is what was signed with the key of {key}"))
    for problem in problems:
        print_error(problem)
    if problems:
        raise typer.Exit(1)


@weights_app.command(
    "convert", epilog=example("weights convert deit_small_patch16_224-cd65a155.pth")
)
def convert_(
    file: Annotated[
        Path, typer.Argument(help="A .pth, or safetensors in transformers' layout.", parser=path)
    ],
    output: Annotated[
        Path | None, path_option("A .safetensors file; beside FILE unless given.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The model; by FILE's name unless given.", autocompletion=complete_name),
    ] = None,
) -> None:
    """Rewrite a checkpoint as safetensors and print its manifest record."""
    from deit_zoo.hub.convert import convert

    output = output or file.parent / f"{file.stem}.safetensors"
    print_json(convert(file, output, name))
    talk.print(f"{escape(str(output))} is written; its tensors are exactly the model's")


@weights_app.command("pin", epilog=example("weights pin deit_small"))
def pin_(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models; all unless given.", autocompletion=complete_name),
    ] = None,
    manifest: Annotated[
        Path | None, path_option("The manifest to rewrite; the one in force unless given.")
    ] = None,
) -> None:
    """Ask the Hub for commit, size and digest of its files and write them into the manifest."""
    from deit_zoo.hub.pin import pin

    path = manifest or manifest_path()
    with Bar("records") as bar:
        changes = pin(path, [resolve(name).name for name in names or ()], bar)
    for change in changes:
        out.print(
            escape(f"{change.name}: {change.fact} {change.before or 'null'} -> {change.after}")
        )
    facts = "1 fact" if len(changes) == 1 else f"{len(changes)} facts"
    talk.print(
        escape(f"{facts} changed in {path}" if changes else f"{path} says what the Hub says")
    )


@weights_app.command(
    "publish", epilog=example("weights publish runs/photos --repo me/photos --dry-run")
)
def publish_(
    name: Annotated[
        str,
        typer.Argument(
            help="A model by any of its names, a run's folder, or a folder of a teacher's labels.",
            autocompletion=complete_name,
        ),
    ],
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="The repository on the Hub.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Leave the folder; no upload.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private, not public.")
    ] = False,
    output: Annotated[
        Path | None, path_option("A new folder to keep its files in [--dry-run: publish/NAME].")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Of a run; that of the weights it began from unless given."),
    ] = None,
    sign: Annotated[
        Path | None, path_option("A private key to sign the files with.", "KEY")
    ] = None,
) -> None:
    """Make a Hub repository of a checkpoint, of a run, or of a teacher's labels, with its card."""
    from deit_zoo.hub import publish
    from deit_zoo.hub.publish_labels import build_labels
    from deit_zoo.hub.publish_run import build_run
    from deit_zoo.hub.sign import sign as sign_folder

    is_run = is_path(name)
    is_labels = is_run and (expand_user(name) / LABEL_FACTS_FILE).is_file()
    if license is not None and not is_run:
        raise ZooError(f"--license is of a run; {name} has its own, in the manifest")
    title = repo.split("/")[-1] if is_run else resolve(name).name

    def build(folder: Path) -> list[Path]:
        if is_labels:
            return build_labels(expand_user(name), repo, folder)
        if is_run:
            return build_run(expand_user(name), repo, folder, license)
        return publish.build(title, repo, folder)

    if not dry_run:
        publish.check_rights(repo)
    with TemporaryDirectory() as temporary:
        folder = output or (Path("publish") if dry_run else Path(temporary)) / title
        files = build(folder)
        try:
            if sign is not None:
                files = [*files, sign_folder(folder, sign)]
            if not dry_run:
                kind = "dataset" if is_labels else "model"
                out.print(publish.upload(folder, repo, title, kind, private))
                return
        except (ZooError, KeyboardInterrupt):
            shutil.rmtree(folder, ignore_errors=True)  # so that the same may be typed again
            raise
    for file in files:
        out.print(escape(str(file)))
    seen = "private" if private else "public unless your organization has set otherwise"
    become = f"without --dry-run these files become {repo}; a new repository is {seen}"
    talk.print(escape(f"nothing was uploaded; {become}"))


def _as_dict(name: str, result: VerifyResult | None) -> dict[str, Any]:
    if result is None:
        return {"name": name, "status": "not cached"}
    right = "whole" if result.file.sha256 else "no digest known"
    return {
        "name": result.file.name,
        "status": "wrong" if result.problem else right,
        "file": str(result.file.path),
        "bytes": result.bytes,
        "proof": result.file.proof,
        "sha256": result.sha256,
        "expected": result.file.sha256,
    }
