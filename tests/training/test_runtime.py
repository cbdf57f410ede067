import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from gap.core.errors import GapError
from gap.training.options import RuntimeOptions, TrainRuntimeOptions
from gap.training.runtime import main_first, make_accelerator

CPU = TrainRuntimeOptions(device="cpu", precision="fp32")


def test_make_accelerator_earlier_device_and_precision_are_reset() -> None:
    make_accelerator(CPU)
    for state in (PartialState, AcceleratorState):
        state._shared_state["device"] = torch.device("meta")
    AcceleratorState._shared_state["_mixed_precision"] = "bf16"
    machine = make_accelerator(CPU)
    assert (machine.device.type, machine.mixed_precision) == ("cpu", "no")
    assert PartialState().device.type == "cpu"
    assert (machine.num_processes, machine.is_main_process) == (1, True)


@pytest.mark.parametrize(("main", "order"), [(True, ["block", "wait"]), (False, ["wait", "block"])])
@pytest.mark.parametrize("fails", [False, True])
def test_main_first_main_process_runs_before_the_others_even_if_it_fails(
    main: bool, order: list[str], fails: bool
) -> None:
    events: list[str] = []
    machine = SimpleNamespace(is_local_main_process=main, wait_for_everyone=lambda: events.append("wait"))
    with suppress(OSError), main_first(machine):
        events.append("block")
        if fails:
            raise OSError
    assert events == order


def test_make_accelerator_evaluation_is_in_float32() -> None:
    assert make_accelerator(RuntimeOptions(device="cpu")).mixed_precision == "no"
    assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(GapError, match="precision"):
        RuntimeOptions.read({"precision": "bf16"})


def test_make_accelerator_by_default_leaves_the_compiler_of_torch_unimported() -> None:
    """Catches: a call that costs every command 4 seconds of CPU time, such as `torch.use_deterministic_algorithms`."""
    code = (
        "import sys; from gap.training.options import RuntimeOptions;"
        " from gap.training.runtime import make_accelerator, preserve_process_state\n"
        "with preserve_process_state(): make_accelerator(RuntimeOptions())\n"
        "print(*{'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == ""
