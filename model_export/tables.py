"""The tables that `list` and `describe` print, beside the paper's figures."""

from model_export.catalog import listed
from model_export.describe import Description, compare_blocks, describe


def list_table() -> str:
    """Every architecture with layers, parameters and multiply-adds, and the paper's errors."""
    lines = [f"{'name':14} {'input':>5} {'layers':>6} {'parameters':>12} {'multiply-adds':>14}  the paper's error"]
    for architecture in listed():
        each = describe(architecture)
        errors = ", ".join(f"{value} % ({data})" for data, value in architecture.paper.errors.items())
        lines.append(
            f"{each.name:14} {each.input_size:5} {each.weight_layers:6} {each.parameters:12,} "
            f"{each.multiply_adds / 1e9:12.3f} G  {errors}".rstrip()
        )
    return "\n".join([*lines, "", "cifar-resnetN is built for every depth N = 6n + 2; -a, -b, -c choose the shortcut."])


def stage_table(description: Description) -> str:
    """One architecture, stage by stage, and its sums beside the paper's."""
    lines = [f"{description.name}, input {description.input_size} × {description.input_size}", ""]
    lines.append(
        f"{'stage':10} {'output':>14}  {'block':34} {'×':>3} {'layers':>6} {'parameters':>12} {'multiply-adds':>15}"
    )
    for stage in description.stages:
        output = " × ".join(map(str, stage.output))
        lines.append(
            f"{stage.name:10} {output:>14}  {'; '.join(stage.block):34} {stage.repeats:3} {stage.weight_layers:6} "
            f"{stage.parameters:12,} {stage.multiply_adds:15,}"
        )
    lines += ["", f"{'':26} {'counted':>15} {'the paper':>12} {'difference':>11}"]
    lines.append(_sum_line("weight layers", description.weight_layers, description.paper["depth"], "{:,}"))
    lines.append(_sum_line("parameters", description.parameters, description.paper["parameters"], "{:,.0f}"))
    billions = description.paper["multiply_adds"] and description.paper["multiply_adds"] / 1e9
    lines.append(_sum_line("multiply-adds, 10⁹", description.multiply_adds / 1e9, billions, "{:.3f}"))
    lines += [f"{'error of ' + data:26} {'':15} {value:10.2f} %" for data, value in description.paper["errors"].items()]
    return "\n".join(lines)


def comparison(one: Description, other: Description) -> str:
    """The cost of one network in terms of another, and of the two kinds of block."""
    lines = [f"{one.name} takes {one.multiply_adds / other.multiply_adds:.1%} of the multiply-adds of {other.name}"]
    stated = one.paper["multiply_adds"], other.paper["multiply_adds"]
    if all(stated):
        lines[0] += f" as counted here, {stated[0] / stated[1]:.1%} by the paper's table 1"
    (basic, basic_weights), (bottleneck, bottleneck_weights) = compare_blocks().items()
    lines.append(
        f"on 256 channels a block of {basic} has {basic_weights:,} weights, and one of {bottleneck} has "
        f"{bottleneck_weights:,} ({bottleneck_weights / basic_weights:.1%})"
    )
    return "\n".join(lines).replace("%", " %")


def _sum_line(name: str, counted: float, stated: float | None, form: str) -> str:
    line = f"{name:26} {form.format(counted):>15}"
    return line if stated is None else f"{line} {form.format(stated):>12} {counted / stated - 1:+11.1%}"
