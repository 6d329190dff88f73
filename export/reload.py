"""A program of its own: load a saved module where the model's code is not, and run it.

`python -I reload.py ROOT MODULE INPUTS OUTPUTS [ENGINE...]`. ROOT is where `engine` and `formats`
are; nothing else is imported from there. OUTPUTS gets, for the module as loaded and frozen, per
case either the flat list of (path, tensor) or the text of the error. OUTPUTS.ENGINE gets, for each
engine named, the same, or the text of the error that kept the engine from being made; it comes
after OUTPUTS, so that an engine that ends the process takes nothing else with it.
"""

import sys
from pathlib import Path
from typing import Any


def _run(module: Any, case: tuple[Any, ...]) -> Any:
    import torch

    from formats.structure import answered

    try:
        with torch.no_grad():
            result = module(*(tensor.clone() for tensor in case))
        return [(path, torch.as_tensor(leaf)) for path, leaf in answered(result)]
    except Exception as error:
        return _last_line(error)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _run_engine(name: str, module_path: str, cases: list[tuple[Any, ...]]) -> Any:
    import torch

    from engine import make

    try:
        engine = make(name, torch.jit.load(module_path), None, Path(module_path).parent)
    except Exception as error:
        return _last_line(error)
    return [_run(engine.plain, case) for case in cases]


def main(root: str, module_path: str, inputs_path: str, outputs_path: str, *engines: str) -> None:
    """Run every case through the loaded module, through its frozen form and through engines."""
    sys.path.insert(0, root)
    import torch

    from engine import plain_graph

    torch.set_num_threads(1)
    cases = torch.load(inputs_path, weights_only=True)
    loaded = torch.jit.load(module_path).eval()
    frozen = plain_graph(torch.jit.load(module_path))
    # What serves is the frozen graph, and runs as it will there. The other has hooks everywhere,
    # and optimising all of that takes minutes for a transformer.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        answers = {"loaded": [_run(loaded, case) for case in cases]}
    answers["frozen"] = [_run(frozen, case) for case in cases]
    torch.save(answers, outputs_path)
    for engine in engines:
        torch.save(_run_engine(engine, module_path, cases), f"{outputs_path}.{engine}")


if __name__ == "__main__":
    main(*sys.argv[1:])
