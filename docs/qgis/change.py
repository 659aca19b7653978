"""Find change between two raster layers: a script for the Processing toolbox of QGIS 3.22 or newer.

Copy this file into the scripts folder of your QGIS profile, as docs/qgis.md describes. It runs the program
`prx-change predict`, which has a Python of its own, so that QGIS needs no further packages.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputRasterLayer,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorLayer,
    QgsSettings,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor

PROGRAM = "prx-change"
LAST_PROGRAM = "prx-change/program"  # the setting of QGIS that holds the program of the last successful run
# Variables that QGIS sets for its own Python, GDAL and PROJ. Those of the program are other versions.
OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA")
BAR = re.compile(r"\b(\d{1,3})%\|")  # of a progress bar such as "scene:  45%|####      | 330/724"
ERROR = "error: "  # what the line begins with in which the program reports an error
ROWS = 0.9  # share of the time until all rows are predicted; then the files are written
PATIENCE = 30  # seconds in which the program may end by itself after it was cancelled

# The layers that a result can have: name of the output, possible files, name of the layer.
LAYERS = (
    ("PROBABILITY", ("probability.tif",), "probability of change"),
    ("MASK", ("mask.tif",), "mask of change"),
    ("POLYGONS", ("changes.gpkg", "changes.geojson"), "changes"),
)

HELP = (
    "Finds change between two raster layers with PRX-Change. It writes polygons, a mask, the probability of change and "
    "a report into a folder, and loads the layers.\n"
    "The rasters must be local files. They may have different grids and reference systems. A result in the temporary "
    "folder is lost when QGIS ends.\n"
    "'Further options' takes options of the command prx-change predict, for example --align --min_area 20. With "
    "--overwrite, an earlier result in the folder is replaced.\n"
    "The program prx-change is installed outside QGIS. If it is not found, choose it under 'Program' once."
)


class PredictChange(QgsProcessingAlgorithm):
    """The algorithm `script:prx_change`."""

    def name(self) -> str:
        """Return the name that identifies the algorithm."""
        return "prx_change"

    def displayName(self) -> str:
        """Return the name that the toolbox shows."""
        return "Find change between two rasters"

    def group(self) -> str:
        """Return the group that the toolbox shows."""
        return "PRX-Change"

    def groupId(self) -> str:
        """Return the name that identifies the group."""
        return "prx_change"

    def shortHelpString(self) -> str:
        """Return the help that the dialog shows."""
        return HELP

    def createInstance(self) -> PredictChange:
        """Return a new algorithm."""
        return PredictChange()

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Declare the parameters and the outputs."""
        number, polygons = QgsProcessingParameterNumber.Double, [QgsProcessing.TypeVectorPolygon]
        program = shutil.which(PROGRAM) or QgsSettings().value(LAST_PROGRAM, "")
        extra = QgsProcessingParameterString("EXTRA", "Further options of prx-change predict", optional=True)
        executable = QgsProcessingParameterFile(
            "PROGRAM",
            "Program prx-change",
            defaultValue=program,
            optional=True,
            fileFilter="All files (*)",  # the default of QGIS refuses names without an ending
        )
        for parameter in (extra, executable):
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        parameters = [
            QgsProcessingParameterRasterLayer("BEFORE", "Before"),
            QgsProcessingParameterRasterLayer("AFTER", "After"),
            QgsProcessingParameterFile("CHECKPOINT", "Checkpoint (empty: buildings)", extension="pth", optional=True),
            QgsProcessingParameterNumber(
                "THRESHOLD", "Threshold (empty: that of the checkpoint)", number, None, True, 0, 1
            ),
            QgsProcessingParameterVectorLayer("AOI", "Predict only inside these polygons", polygons, optional=True),
            extra,
            executable,
            QgsProcessingParameterFolderDestination("OUTPUT", "Folder for the result"),
        ]
        for parameter in parameters:
            self.addParameter(parameter)
        self.addOutput(QgsProcessingOutputVectorLayer("POLYGONS", "Polygons of change"))
        self.addOutput(QgsProcessingOutputRasterLayer("MASK", "Mask of change"))
        self.addOutput(QgsProcessingOutputRasterLayer("PROBABILITY", "Probability of change"))

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Make the command line, while layers may be used. Raises QgsProcessingException for what cannot be run."""

        def text(name: str) -> str:
            return self.parameterAsString(parameters, name, context).strip()

        program = shutil.which(str(Path(text("PROGRAM") or PROGRAM).expanduser()))
        if not program:
            wanted = text("PROGRAM") or f"{PROGRAM}, which is not on PATH"
            raise QgsProcessingException(f"cannot run {wanted}: install PRX-Change and choose its program {PROGRAM}")
        rasters = []
        for name in ("BEFORE", "AFTER"):
            layer = self.parameterAsRasterLayer(parameters, name, context)
            if layer is None:
                raise QgsProcessingException(self.invalidRasterError(parameters, name))
            rasters.append(file_of(layer, name))
        self.folder = Path(text("OUTPUT")).absolute()
        self.command = [program, "predict", *rasters, "-o", str(self.folder)]
        for name, option in (("CHECKPOINT", "--checkpoint_path"), ("THRESHOLD", "--threshold")):
            if text(name):
                self.command += [option, text(name)]
        area = self.parameterAsVectorLayer(parameters, "AOI", context)
        if area is not None:
            self.command += ["--aoi", file_of(area, "AOI")]
        elif parameters.get("AOI"):
            raise QgsProcessingException(f"AOI {text('AOI')} cannot be read: choose a layer of polygons")
        try:
            self.command += shlex.split(text("EXTRA"))
        except ValueError as error:
            raise QgsProcessingException(f"EXTRA {text('EXTRA')}: {error}; check the quotation marks") from error
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run the command and let QGIS load its layers; return the files by the names of the outputs."""
        run(self.command, self.folder, feedback)
        if feedback.isCanceled():
            return {}
        QgsSettings().setValue(LAST_PROGRAM, self.command[0])
        results = {"OUTPUT": str(self.folder)}
        for output, names, title in LAYERS:
            for path in (self.folder / name for name in names):
                if path.is_file():
                    details = QgsProcessingContext.LayerDetails(title, context.project(), output)
                    KEPT.append(Arrange())
                    details.setPostProcessor(KEPT[-1])
                    context.addLayerToLoadOnCompletion(str(path), details)
                    results[output] = str(path)
        return results


def file_of(layer: QgsMapLayer, name: str) -> str:
    """Return the absolute path of the file that a layer shows, all of it; `name`: the parameter, for the errors.

    Raises QgsProcessingException if the layer is no local file, shows a part of one, or has edits that are not saved.
    """
    path, _, part = layer.source().partition("|")
    title = f"{name} {layer.name()}"
    if layer.dataProvider().name() not in ("gdal", "ogr") or not Path(path).is_file():
        raise QgsProcessingException(f"{title} is no local file: export the layer to one and choose that")
    is_vector = isinstance(layer, QgsVectorLayer)
    if layer.subsetString() if is_vector else part:
        raise QgsProcessingException(f"{title} shows a part of its file: export the layer and choose the new file")
    if is_vector and layer.isModified():
        raise QgsProcessingException(f"{title} has edits that are not saved: save them first")
    return str(Path(path).absolute())


def run(command: list[str], folder: Path, feedback: QgsProcessingFeedback) -> None:
    """Run a command until it ends or is cancelled, and show what it writes.

    Args:
        command: the program and its arguments.
        folder: the folder that it writes.
        feedback: receives the lines and the progress, and says whether to cancel.

    Raises:
        QgsProcessingException: if the command fails, with the error that it reports.
    """
    feedback.pushCommandInfo(" ".join(map(shlex.quote, command)))
    try:
        process = start(command)
    except OSError as error:
        raise QgsProcessingException(f"cannot run {command[0]}: {error.strerror}") from error
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=read_lines, args=(process, lines), daemon=True).start()
    last = ""
    try:
        while not feedback.isCanceled():
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                break
            last = show_line(line, feedback) or last
        if not feedback.isCanceled() and process.wait():
            reason = last[len(ERROR) :] if last.startswith(ERROR) else f"exit code {process.returncode}: {last}"
            raise QgsProcessingException(reason)
    finally:
        stop(process, folder)


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command with the environment that it had without QGIS; its two outputs become one, in UTF-8."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_QGIS}
    return subprocess.Popen(
        command,
        env={**environment, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows only
    )


def read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Put the lines that a process writes into a queue, then None; what "\\r" ends is a line as well."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.strip())
    lines.put(None)


def show_line(line: str, feedback: QgsProcessingFeedback) -> str:
    """Show a line in the log, or as progress if it is a progress bar; return it if it went to the log."""
    bar = BAR.search(line)
    if bar:
        feedback.setProgress(ROWS * int(bar[1]))
        return ""
    if line and not line.startswith(ERROR):
        feedback.pushConsoleInfo(line)
    return line


def stop(process: subprocess.Popen[str], folder: Path) -> None:
    """End a process that is still running, and see to it that nothing half-done stays beside `folder`.

    Ctrl-C makes the program remove what it has begun. Windows has nothing like it for a process without a window.
    """
    if process.poll() is not None:
        return
    if os.name == "posix":
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            return
    process.kill()
    process.wait()
    shutil.rmtree(folder.with_name(f".{folder.name}.part"), ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.with_name(f".{folder.name}.lock").unlink()


class Arrange(QgsProcessingLayerPostProcessorInterface):
    """Styles the layers, and puts the polygons above the rasters, which are hidden because they cover the images."""

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Arrange a layer that QGIS has added to the project, and those of the same folder that came before."""
        path = file_path(layer)
        node = context.project().layerTreeRoot().findLayer(layer.id())
        if isinstance(layer, QgsVectorLayer):
            layer.loadNamedStyle(str(path.with_suffix(".qml")))
        else:
            node.setItemVisibilityChecked(False)
            node.setExpanded(False)
        if path.name == "mask.tif":  # its own colours cover unchanged pixels with black
            changed = QgsPalettedRasterRenderer.Class(1, QColor("red"), "changed")
            layer.setRenderer(QgsPalettedRasterRenderer(layer.dataProvider(), 1, [changed]))
        parent = node.parent()
        for other in parent.findLayers():
            if isinstance(other.layer(), QgsVectorLayer) and file_path(other.layer()).parent == path.parent:
                parent.insertChildNode(0, other.clone())
                parent.removeChildNode(other)


def file_path(layer: QgsMapLayer) -> Path:
    """Return the path in the source of a layer."""
    return Path(layer.source().partition("|")[0])


KEPT: list[Arrange] = []  # QGIS calls and deletes each of them; Python would delete them before
