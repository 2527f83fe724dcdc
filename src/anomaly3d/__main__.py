"""The command `anomaly3d`: Lightning's verbs and ours. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable

from anomaly3d import __version__
from anomaly3d.errors import InputError, message, parser_reason

USAGE = """\
usage: anomaly3d VERB [--config FILE] [--KEY VALUE ...]

3D point-cloud anomaly detection: train, test and compare Mamba3dAD and SeDiR.

  generate     make the synthetic data set of industrial parts (Anomaly-ShapeNet layout)
  fit          train a detector on normal clouds
  validate     score a detector on validation data made from training clouds
  test         score a detector on the test clouds; prints and writes the table
  predict      score clouds of unknown truth; writes scores and coloured clouds
  pretrain     train a backbone on procedural shapes; writes its weights
  compare      run a grid of methods, unified and per category, into one table
  check-table  check the arithmetic of tables of results: means, attainable values
  ice          measure how far a unified SeDiR takes categories for one another

Every verb has --help. Recipes lie in configs/experiment/, e.g.

  anomaly3d generate --root datasets/synthetic
  anomaly3d fit  --config configs/experiment/sedir_synthetic_unified.yaml --data.root datasets/synthetic
  anomaly3d test --config configs/experiment/sedir_synthetic_unified.yaml --data.root datasets/synthetic \\
                 --ckpt_path runs/sedir_synthetic_unified/version_0/checkpoints/last.ckpt
"""


_OF_THE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC)
"""Errors of files that are no defect of ours: rights, a file in place of a folder, a full disk."""


def main(argv: list[str] | None = None) -> None:
    """Run one verb; bad input ends with one line on standard error and status 2."""
    # Read by OpenMP when torch is imported: idle threads sleep instead of spinning, which on a shared machine
    # makes loops of small operations many times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = sys.argv[1:] if argv is None else argv
    warnings.formatwarning = _one_line
    if args[:1] == ["--version"]:
        print(f"anomaly3d {__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    verbs: dict[str, Callable[[list[str]], None]] = {
        **dict.fromkeys(("fit", "validate", "test", "predict"), _lightning),
        "generate": _generate,
        "compare": _compare,
        "check-table": _check_table,
        "pretrain": _pretrain,
        "ice": _ice,
    }
    if args[0] not in verbs:
        sys.exit(f"anomaly3d: unknown verb '{args[0]}'; choose from {', '.join(verbs)}")
    try:
        verbs[args[0]](args)
    except InputError as error:
        print(f"anomaly3d: {message(error)}", file=sys.stderr)
        sys.exit(2)
    except ArgumentError as error:
        print(f"anomaly3d: {parser_reason(error)} (`anomaly3d {args[0]} --help` lists what there is)", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM or error.filename is None:
            raise
        print(f"anomaly3d: {error.filename}: {error.strerror}; choose another place, or mend this one", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """A warning as users read it, without the place in our source that gave it."""
    return f"anomaly3d: {'' if category is UserWarning else f'{category.__name__}: '}{message}\n"


def _lightning(args: list[str]) -> None:
    from anomaly3d.lit.cli import run

    run(args)


def _generate(args: list[str]) -> None:
    from jsonargparse import auto_cli

    from anomaly3d.data.synthetic.generate import generate

    root = auto_cli(generate, args=args[1:], prog="anomaly3d generate", as_positional=False, exit_on_error=False)
    print(f"written: {root}")


def _compare(args: list[str]) -> None:
    from anomaly3d.compare.cli import run

    run(args[1:])


def _check_table(args: list[str]) -> None:
    from anomaly3d.report.check_table import run

    run(args[1:])


def _pretrain(args: list[str]) -> None:
    from anomaly3d.lit.pretrain_cli import pretrain

    pretrain(args[1:])


def _ice(args: list[str]) -> None:
    from jsonargparse import auto_cli

    from anomaly3d.ice import ice

    auto_cli(ice, args=args[1:], prog="anomaly3d ice", as_positional=False, exit_on_error=False)


if __name__ == "__main__":
    main()
