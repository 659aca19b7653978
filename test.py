"""Test a checkpoint on a folder of image pairs: scores, masks, error maps, panels. `python test.py --help`."""

from __future__ import annotations

from pathlib import Path

from change.change_dataloader import find_split
from change.checkpoint import load_checkpoint, network_for_prediction
from change.common import distributed
from change.common.devices import choose_amp, choose_device
from change.common.errors import run_command
from change.common.logs import start_logging
from change.data.groups import find_check, read_places
from change.data.loaders import default_workers, whole_loader
from change.data.samples import WholeSamples
from change.evaluation.evaluate import Evaluation, Outputs
from change.options import TestOptions, parse_given


@distributed.joined()
def main(arguments: list[str]) -> int:
    """Parse, build, run; return the exit code."""
    process, processes = distributed.rank(), distributed.processes()
    start_logging(process)
    options = TestOptions(**parse_given(TestOptions, arguments, "Test PRX-Change on a folder of A, B and label."))
    device = choose_device(options.device)
    checkpoint = load_checkpoint(Path(options.checkpoint_path))
    threshold = checkpoint.chosen_threshold(options.threshold)
    network, left_out = network_for_prediction(checkpoint)
    list_file = Path(options.list) if options.list else None
    split = find_split(Path(options.test_root), "", list_file, need_labels=False)
    checked = Path(options.check) if options.check else find_check(Path(options.test_root))
    places = read_places(checked) if checked else {}
    folder = Path(options.save_path or Path(__file__).parent / "results" / split.name)
    outputs = Outputs(
        folder,
        masks=Path(options.save_result_path or folder / "pred") if options.save_result else None,
        error_maps=Path(options.save_iou_map_path or folder / "iou_map") if options.save_iou_map else None,
        panels=Path(options.save_panels_path or folder / "panels") if options.save_panels else None,
        report=folder / "report.html" if options.report else None,
    )
    workers = default_workers(distributed.neighbours()) if options.workers < 0 else options.workers
    samples = WholeSamples(split, options.testsize)
    batches = whole_loader(samples, options.test_batchsize, workers, process=process, processes=processes)
    evaluation = Evaluation(
        checkpoint=checkpoint,
        split=split,
        device=device,
        amp=choose_amp(options.amp, device),
        size=options.testsize,
        left_out=left_out,
        protocol=options.prediction(),
        threshold=threshold,
        places=places,
        compiling=options.compile,
    )
    evaluation.run(network.to(device), batches, outputs)
    return 0


if __name__ == "__main__":
    run_command(main)
