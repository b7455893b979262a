"""`resnet-export`: from a trained torch checkpoint to an artifact. Commands, progress and exit codes; no logic.

Exit codes: 0 done; 1 refused or failed, with one line on stderr that says why and what to do; 2 wrong usage.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_export.datasets import FORMS, is_known
from model_export.errors import ExportError
from service.folder import VERSION_DIGITS, version_of

if TYPE_CHECKING:
    from model_export.skip_schedule import Closure
    from service.artifact import Accuracy, Parity, Quantisation

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SOURCES = "a checkpoint file or folder, builtin:digits, torchvision:NAME[@WEIGHTS], hf:OWNER/NAME or timm:MODEL.TAG"
DEVICES = ("auto", "cpu", "cuda")
MISSING = "the exporter needs torch and onnxruntime: pip install 'resnet-service[cpu,export]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    options = _parser().parse_args(arguments)
    # onnxscript and torch log what only their authors can use.
    logging.basicConfig(level=logging.DEBUG if os.environ.get("RESNET_EXPORT_DEBUG") else logging.ERROR)
    try:
        options.run(options)
    except ExportError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"{MISSING} (no module {error.name})")
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written")
    except Exception as error:  # whatever it is, it reaches a person as one line
        logging.debug("unexpected failure", exc_info=error)
        return _fail(
            f"unexpected {type(error).__name__}: {error or 'no reason given'}; RESNET_EXPORT_DEBUG=1 shows where"
        )
    return 0


def _convert(options: argparse.Namespace) -> None:
    from model_export.checkpoints import Given, read_labels
    from model_export.convert import Order, Target, convert
    from model_export.evidence import Plan
    from model_export.presets import find_preset

    given = Given(
        options.arch,
        read_labels(options.labels) if options.labels else None,
        find_preset(options.preset) if options.preset else None,
        options.ema,
    )
    plan = Plan(
        precision=options.precision,
        target=options.int8_target,
        calibration=options.calibration,
        method=options.calibration_method,
        min_agreement=options.min_agreement,
    )
    order = Order(options.source, given, plan, options.images, options.evaluate)
    converted = convert(order, Target(options.name, options.out, options.version), _progress)
    _print_quantisation(converted.card.quantisation)
    _print_parity(converted.card.parity)
    _print_accuracy(converted.card.accuracy)
    print(f"wrote {converted.path}")


def _verify(options: argparse.Namespace) -> None:
    from model_export.verify import verify

    _print_parity(verify(options.model, options.source, options.images, ema=options.ema))


def _report(options: argparse.Namespace) -> None:
    from model_export.report import write_report

    write_report(options.model, options.out, _progress)
    print(f"wrote {options.out}")


def _inspect(options: argparse.Namespace) -> None:
    from model_export.verify import card_of

    card = card_of(options.model)
    if options.json:
        _print_json(card.summary())
        return
    for field, value in card.summary().items():
        print(f"{field:14} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _list(options: argparse.Namespace) -> None:
    from model_export.catalog import listed
    from model_export.describe import describe
    from model_export.tables import list_table

    if options.json:
        _print_json([describe(architecture).to_json() for architecture in listed()])
    else:
        print(list_table())


def _describe(options: argparse.Namespace) -> None:
    from model_export.catalog import find_architecture
    from model_export.describe import compare_blocks, describe
    from model_export.tables import comparison, stage_table

    described = [describe(find_architecture(name)) for name in (options.arch, options.compare) if name]
    if options.json:
        own, *others = (each.to_json() for each in described)
        _print_json(own | ({"compare": others[0], "blocks": compare_blocks()} if others else {}))
        return
    print("\n\n".join(map(stage_table, described)))
    if options.compare:
        print(f"\n{comparison(*described)}")


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _train(options: argparse.Namespace) -> None:
    from model_export.train import Order, train

    order = Order(
        architecture=options.arch,
        data=options.data,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warm_up=options.warm_up,
        flip=options.flip,
        skip_schedule=options.skip_schedule,
        seed=options.seed,
        device=options.device,
    )
    accuracy = train(order, options.out, options.log)
    print(f"{accuracy.top1:.2%} of {accuracy.images} held-out images; wrote {options.out}")


def _study(options: argparse.Namespace) -> None:
    from model_export.study import Plan, study

    plan = Plan(
        depths=options.depths,
        variants=options.variants,
        seeds=options.seeds,
        data=options.data,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        device=options.device,
    )
    print(study(plan, options.out))


def _print_parity(parity: "Parity | None") -> None:
    if parity is not None:
        print(f"parity of torch and onnxruntime on {parity.images} images")
        print(f"  batch sizes          {', '.join(map(str, parity.batch_sizes))}")
        print(f"  largest difference   {parity.max_abs_diff:.3g} (relative {parity.max_rel_diff:.3g})")
        print(f"  allowed, relative    {parity.tolerance:.3g}")
        print(f"  KL divergence        {parity.kl_divergence:.3g} nats")
        print(f"  top-1 agreement      {parity.top1_agreement:.2%}")


def _print_quantisation(quantisation: "Quantisation | None") -> None:
    if quantisation is not None:
        print(f"int8 for {quantisation.target}, calibrated on {quantisation.images} images by {quantisation.method}")
        for trial in quantisation.trials:
            print(f"  {trial.method:20} agreement {trial.top1_agreement:.2%}, KL {trial.kl_divergence:.3g} nats")


def _print_accuracy(accuracy: "Accuracy | None") -> None:
    if accuracy is not None:
        before = "" if accuracy.float32_top1 is None else f" (float32 {accuracy.float32_top1:.2%})"
        print(f"top-1 accuracy {accuracy.top1:.2%}{before} of {accuracy.images} images: {accuracy.data}")


def _progress(line: str) -> None:
    print(f"{line} …", file=sys.stderr)


def _fail(reason: str) -> int:
    print(f"resnet-export: {' '.join(reason.split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resnet-export", description="From a trained ResNet to a servable artifact.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_convert(commands)
    _add_inspect(commands)
    _add_verify(commands)
    _add_report(commands)
    _add_train(commands)
    _add_study(commands)
    _add_list(commands)
    _add_describe(commands)
    return parser


def _add_convert(commands: "Commands") -> None:
    command = commands.add_parser("convert", help="write models/NAME/N/model.onnx from a checkpoint")
    command.set_defaults(run=_convert)
    command.add_argument("source", metavar="SOURCE", help=SOURCES)
    command.add_argument("--name", required=True, help="the model's name in the service")
    command.add_argument("--arch", help="architecture, when the checkpoint does not say it")
    command.add_argument("--labels", type=Path, metavar="FILE", help="labels by class index: one a line, or JSON")
    command.add_argument("--preset", help="preprocessing by name, or a JSON file, when the checkpoint does not say it")
    command.add_argument("--ema", action="store_true", help="take the averaged weights that a trainer kept")
    command.add_argument("--images", type=Path, metavar="DIR", help="real images for parity and golden replay")
    command.add_argument(
        "--evaluate",
        type=Path,
        metavar="DIR",
        help="images in a folder for each class: the accuracy, and --images if there are none",
    )
    command.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of the graph (fp32)")
    command.add_argument("--calibration", type=Path, metavar="DIR", help="images to find int8's ranges on")
    command.add_argument(
        "--calibration-method",
        choices=("auto", "minmax", "entropy", "percentile"),
        default="auto",
        help="how int8's ranges are found; auto tries all and keeps the one that agrees best with float32 (auto)",
    )
    command.add_argument(
        "--int8-target",
        choices=("cpu", "cpu-avx2", "tensorrt"),
        default="cpu",
        help="what the int8 graph is made for: CPUs with VNNI, CPUs without (7-bit weights), or TensorRT (cpu)",
    )
    command.add_argument(
        "--min-agreement",
        type=_share,
        default=0.99,
        metavar="SHARE",
        help="least share of images on which fp16 or int8 must give float32's top-1 class (0.99)",
    )
    command.add_argument("--out", type=Path, default=Path("models"), metavar="DIR", help="model folder (models)")
    command.add_argument("--version", type=_version, metavar="N", help="version (the next free one)")


def _add_inspect(commands: "Commands") -> None:
    command = commands.add_parser("inspect", help="print the model card inside an artifact")
    command.set_defaults(run=_inspect)
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument("--json", action="store_true", help="as JSON")


def _add_verify(commands: "Commands") -> None:
    command = commands.add_parser("verify", help="compare an artifact with its checkpoint again, on this machine")
    command.set_defaults(run=_verify)
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument("--source", required=True, help=SOURCES)
    command.add_argument("--ema", action="store_true", help="take the averaged weights that a trainer kept")
    command.add_argument("--images", type=Path, metavar="DIR", help="real images to compare on")


def _add_report(commands: "Commands") -> None:
    command = commands.add_parser("report", help="write a page about an artifact, with its speed on this machine")
    command.set_defaults(run=_report)
    command.add_argument("model", type=Path, metavar="MODEL.onnx")
    command.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="the page, in one file")


def _add_train(commands: "Commands") -> None:
    command = commands.add_parser("train", help="train a checkpoint that convert takes")
    command.set_defaults(run=_train)
    command.add_argument("--arch", required=True, help="architecture")
    command.add_argument("--data", required=True, type=_data, help=FORMS)
    command.add_argument("--out", required=True, type=Path, metavar="FILE", help="safetensors file to write")
    command.add_argument("--log", type=Path, metavar="FILE", help="JSON lines, one an epoch (OUT with .jsonl)")
    command.add_argument("--epochs", type=_positive, help="passes over the data (digits 60, CIFAR 164, folder 120)")
    command.add_argument("--batch-size", type=_positive, default=128, metavar="N", help="images a step (128)")
    command.add_argument(
        "--learning-rate",
        type=_rate,
        default=0.1,
        metavar="R",
        help="divided by 10 at 50 and 75 %% of the epochs (0.1)",
    )
    command.add_argument(
        "--warm-up",
        action=argparse.BooleanOptionalAction,
        help="a tenth of the rate until the training error is below 80 %% (for 110 layers and more)",
    )
    command.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror half of the images (never digits)"
    )
    command.add_argument(
        "--skip-schedule",
        type=_schedule,
        default=(),
        metavar="SHARE:NAME",
        help="keep residual branches closed for a share of the epochs: 0.2:layer2, several by commas (none)",
    )
    command.add_argument("--seed", type=_seed, default=0, help="fixes weights, order and augmentation (0)")
    command.add_argument("--device", choices=DEVICES, default="auto", help="where it trains (CUDA where there is one)")


def _add_study(commands: "Commands") -> None:
    command = commands.add_parser("study", help="plain against residual networks as depth grows: the paper's figure 6")
    command.set_defaults(run=_study)
    command.add_argument("--depths", type=_depths, default=(20, 56), help="6n + 2, by commas (20,56)")
    command.add_argument("--data", type=_data, default="digits", help=f"{FORMS} (digits)")
    command.add_argument("--epochs", type=_positive, default=12, help="passes over the data (12)")
    command.add_argument("--seeds", type=_positive, default=1, help="runs of each network (1)")
    command.add_argument(
        "--variants", type=_variants, default=("plain", "a"), help="plain, and shortcut options a, b, c (plain,a)"
    )
    command.add_argument("--batch-size", type=_positive, metavar="N", help="images a step (128, and 32 for few images)")
    command.add_argument("--learning-rate", type=_rate, metavar="R", help="0.1 for batches of 128, and in proportion")
    command.add_argument("--device", choices=DEVICES, default="auto", help="where it trains (CUDA where there is one)")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for table, CSV and figures")


def _depths(text: str) -> tuple[int, ...]:
    depths = tuple(int(each) for each in text.split(","))
    if any(depth < 8 or depth % 6 != 2 for depth in depths):
        raise argparse.ArgumentTypeError("depths are 6n + 2: 8, 14, 20, …")
    return depths


def _variants(text: str) -> tuple[str, ...]:
    variants = tuple(text.split(","))
    if not set(variants) <= {"plain", "a", "b", "c"}:
        raise argparse.ArgumentTypeError("variants are plain, a, b and c")
    return variants


def _add_list(commands: "Commands") -> None:
    command = commands.add_parser("list", help="every architecture with layers, parameters and multiply-adds")
    command.set_defaults(run=_list)
    command.add_argument("--json", action="store_true", help="as JSON, with the stages")


def _add_describe(commands: "Commands") -> None:
    command = commands.add_parser("describe", help="one architecture, stage by stage, beside the paper's figures")
    command.set_defaults(run=_describe)
    command.add_argument("arch", metavar="ARCH")
    command.add_argument("--compare", metavar="ARCH", help="and what it costs in terms of another")
    command.add_argument("--json", action="store_true", help="as JSON")


def _data(text: str) -> str:
    if not is_known(text):
        raise argparse.ArgumentTypeError(f"give {FORMS}")
    return text


def _schedule(text: str) -> "tuple[Closure, ...]":
    from model_export.skip_schedule import parse_schedule

    try:
        return parse_schedule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("give SHARE:NAME, as in 0.2:layer2, with a share from 0 to 1") from error


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be a positive number")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 2⁶³ - 1")
    return number


def _share(text: str) -> float:
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be a share from 0 to 1, or from 0% to 100%")
    return number


def _version(text: str) -> int:
    number = version_of(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"must be a positive whole number of {VERSION_DIGITS} digits at most")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be a positive whole number")
    return number
