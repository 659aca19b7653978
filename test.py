"""Test a checkpoint on a folder of image pairs: scores, masks, error maps, panels. `python test.py --help`."""

from __future__ import annotations

from pathlib import Path

from change.common.errors import check_first, run_command
from change.options.test import OutputOptions, parse_test_of_files

if __name__ == "__main__":
    check_first(parse_test_of_files)

from change.change_dataloader import find_split
from change.checkpoint import load_checkpoint, network_for_prediction
from change.common import distributed
from change.common.classes import choose_classes
from change.common.devices import choose_amp, choose_device
from change.common.logs import start_logging
from change.data.groups import find_check, read_places
from change.data.loaders import default_workers, whole_loader
from change.data.samples import WholeSamples
from change.evaluation.evaluate import Evaluation
from change.evaluation.outputs import Outputs, default_folder
from change.evaluation.summary import Settings


@distributed.join()
def main(arguments: list[str]) -> int:
    """Parse, build, run; return the exit code."""
    process, processes = distributed.rank(), distributed.processes()
    start_logging(process)
    options = parse_test_of_files(arguments)
    source, protocol, compute = options.input, options.protocol, options.compute
    outputs = find_outputs(options.output, Path(source.test_root))
    device = choose_device(compute.device)
    checkpoint = load_checkpoint(Path(source.checkpoint_path))
    threshold = checkpoint.choose_threshold(protocol.threshold)
    network, left_out = network_for_prediction(checkpoint)
    list_file = Path(source.list) if source.list else None
    root = Path(source.test_root)
    holds = choose_classes(root, source.classes)
    split = find_split(root, "", list_file, need_labels=False, bands=checkpoint.bands, holds=holds)
    check_file = Path(source.check) if source.check else find_check(Path(source.test_root))
    workers = default_workers(distributed.neighbours()) if compute.workers < 0 else compute.workers
    batches = whole_loader(
        WholeSamples(split, protocol.testsize),
        protocol.test_batchsize,
        workers,
        process=process,
        processes=processes,
    )
    settings = Settings(
        protocol=protocol.prediction(),
        size=protocol.testsize,
        threshold=threshold,
        amp=choose_amp(compute.amp, device),
        device=device,
    )
    evaluation = Evaluation(
        checkpoint=checkpoint,
        left_out=left_out,
        split=split,
        settings=settings,
        places=read_places(check_file) if check_file else {},
        compiling=compute.compile,
    )
    evaluation.run(network.to(device), batches, outputs)
    return 0


def find_outputs(options: OutputOptions, root: Path) -> Outputs:
    """Name the paths that a test of the pairs in `root` writes to. Raises UserError as `default_folder` does."""
    folder = Path(options.save_path) if options.save_path else default_folder(root)
    return Outputs(
        folder,
        masks=Path(options.save_result_path or folder / "pred") if options.save_result else None,
        error_maps=Path(options.save_iou_map_path or folder / "iou_map") if options.save_iou_map else None,
        panels=Path(options.save_panels_path or folder / "panels") if options.save_panels else None,
        report=folder / "report.html" if options.report else None,
    )


if __name__ == "__main__":
    run_command(main)
