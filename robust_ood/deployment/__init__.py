"""From a detector to a decision: calibrated thresholds, folders to ship, exports, a service, drift.

A *guard* is one network with one fitted detector, a threshold that keeps a stated promise on new
in-distribution images, and what was measured at that threshold. (The callback
`robust_ood.callbacks.Guards`, which stops a training that has diverged, is something else.)
"""

from robust_ood.deployment.calibration import calibrate
from robust_ood.deployment.drift import Drift, watch
from robust_ood.deployment.export import export_guard
from robust_ood.deployment.folder import load_guard, write_guard
from robust_ood.deployment.guard import Decision, Guard
from robust_ood.deployment.predict import predict_files
from robust_ood.deployment.preprocessing import Preprocessing
from robust_ood.deployment.tolerance import Threshold, conformal_threshold, images_needed

__all__ = [
    "Decision",
    "Drift",
    "Guard",
    "Preprocessing",
    "Threshold",
    "calibrate",
    "conformal_threshold",
    "export_guard",
    "images_needed",
    "load_guard",
    "predict_files",
    "watch",
    "write_guard",
]
