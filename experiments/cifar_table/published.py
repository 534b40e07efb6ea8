"""Published top-1 accuracies in %, with their sources; CIFAR-100 unless noted otherwise.

Last epoch unless the source notes otherwise. RepDistiller's README gives the mean of several runs.
Figures that were only recalled, and not found in a file, are left out, so a gap here is not a gap
in the literature; the two of "TAKD" are the exception, and their source states it.
"""

from experiments.cifar_table.benchmark import literature

SOURCES = {
    "RepDistiller": "HobbitLong/RepDistiller, README; last epoch",
    "CRD": "Tian et al. 2020, CRD + KD, as giakoumoglou/distillers quotes it",
    "ReviewKD": "Chen et al. 2021, as later tables quote it",
    "DKD": "megvii-research/mdistiller, README",
    "DIST": "hunto/DIST_KD, README",
    "logit-std": "sunshangquan/logit-standardization-KD, README; often the best epoch",
    "SimKD": "DefangChen/SimKD, README",
    "KD-Zoo": "AberHu/Knowledge-Distillation-Zoo, README; CIFAR-10",
    "TAKD": "Mirzadeh et al. 2020, table 2, quoted from memory (the authors' issue 10 confirms "
    "about 88.5 for resnet8 alone); best epoch on the test set; CIFAR-10",
}

# One line for each method, with a figure for each pair in the order of `literature.PAIRS`, or None.
_ = None
_ROWS: dict[str, tuple[str, tuple[float | None, ...]]] = {
    "kd": ("RepDistiller", (
        74.92, 73.54, 70.66, 70.67, 73.08, 73.33, 72.98,
        67.37, 67.35, 73.81, 74.07, 74.45, 74.83,
    )),
    "fitnet": ("RepDistiller", (
        73.58, 72.24, 69.21, 68.99, 71.06, 73.50, 71.02,
        64.14, 63.16, 70.69, 73.59, 73.54, 73.73,
    )),
    "at": ("RepDistiller", (
        74.08, 72.77, 70.55, 70.22, 72.31, 73.44, 71.43,
        59.40, 58.58, 71.84, 71.73, 72.73, 73.32,
    )),
    "sp": ("RepDistiller", (
        73.83, 72.43, 69.67, 70.04, 72.69, 72.94, 72.68,
        66.30, 68.08, 73.34, 73.48, 74.56, 74.52,
    )),
    "cc": ("RepDistiller", (
        73.56, 72.21, 69.63, 69.48, 71.48, 72.97, 70.71,
        64.86, 65.43, 70.25, 71.14, 71.29, 71.38,
    )),
    "vid": ("RepDistiller", (
        74.11, 73.30, 70.38, 70.16, 72.61, 73.09, 71.23,
        65.56, 67.57, 70.30, 73.38, 73.40, 73.61,
    )),
    "rkd": ("RepDistiller", (
        73.35, 72.22, 69.61, 69.25, 71.82, 71.90, 71.48,
        64.52, 64.43, 71.50, 72.28, 73.21, 72.21,
    )),
    "pkt": ("RepDistiller", (
        74.54, 73.45, 70.34, 70.25, 72.61, 73.64, 72.88,
        67.13, 66.52, 73.01, 74.10, 74.69, 73.89,
    )),
    "ab": ("RepDistiller", (
        72.50, 72.38, 69.47, 69.53, 70.98, 73.17, 70.94,
        66.06, 67.20, 70.65, 73.55, 74.31, 73.34,
    )),
    "ft": ("RepDistiller", (
        73.25, 71.59, 69.84, 70.22, 72.37, 72.86, 70.58,
        61.78, 60.99, 70.29, 71.75, 72.50, 72.03,
    )),
    "fsp": ("RepDistiller", (72.91, _, 69.95, 70.11, 71.89, 72.62, 70.23, _, _, _, _, _, _)),
    "nst": ("RepDistiller", (
        73.68, 72.24, 69.60, 69.53, 71.96, 73.30, 71.53,
        58.16, 64.96, 71.28, 74.12, 74.68, 74.89,
    )),
    "crd": ("RepDistiller", (
        75.48, 74.14, 71.16, 71.46, 73.48, 75.51, 73.94,
        69.73, 69.11, 74.30, 75.11, 75.65, 76.05,
    )),
    "crd_kd": ("CRD", (
        75.64, 74.38, 71.63, 71.56, 73.75, 75.46, 74.29,
        69.94, 69.54, 74.58, 75.12, 76.05, 76.27,
    )),
    "review": ("ReviewKD", (
        76.12, 75.09, 71.89, _, 73.89, 75.63, _, _, 69.89, _, 77.45, 77.78, 77.14,
    )),
    "dkd": ("DKD", (
        76.23, 74.81, 71.97, 71.06, 74.11, 76.32, 74.68,
        69.71, 70.35, _, 76.45, 77.07, 76.70,
    )),
    "dist": ("DIST", (_, 74.43, 71.75, _, _, 76.31, _, _, 68.66, _, 76.34, 77.35, _)),
    "mlkd": ("logit-std", (
        76.63, 75.35, 72.19, 71.89, 74.11, 77.08, 75.18, 70.57, 71.04, _, _, 78.44, _,
    )),
    "ctkd": ("logit-std", (
        75.45, 73.93, 71.19, 70.99, 73.52, 73.39, 73.52, 68.50, 68.67, _, _, 75.37, _,
    )),
    "kd_ls": ("logit-std", (
        76.11, 74.37, 71.43, 71.48, 74.17, 76.62, 74.36, 68.61, 69.02, _, _, 75.56, _,
    )),
    "dkd_ls": ("logit-std", (
        76.39, 74.89, 72.32, 71.85, 74.29, 77.01, 74.81, 69.98, 70.45, _, _, 77.37, _,
    )),
    "ctkd_ls": ("logit-std", (76.08, 74.58, 71.34, 71.39, 74.01, 76.67, 74.47, _, _, _, _, _, _)),
    "mlkd_ls": ("logit-std", (
        76.95, 75.56, 72.33, 72.27, 74.32, 78.28, 75.22, 70.94, 71.19, _, _, 78.76, _,
    )),
    "simkd": ("SimKD", (_, _, _, _, _, 78.08, _, _, _, _, _, _, _)),
    "srrl": ("SimKD", (_, _, _, _, _, 75.39, _, _, _, _, _, _, _)),
}  # fmt: skip

CIFAR100 = {
    (teacher, student, method): (figure, source)
    for method, (source, figures) in _ROWS.items()
    for (teacher, student), figure in zip(literature.PAIRS, figures, strict=True)
    if figure is not None
}

CIFAR10 = {
    ("resnet110", "resnet20", "kd"): (92.82, "KD-Zoo"),
    ("resnet110", "resnet20", "at"): (93.21, "KD-Zoo"),
    # Published for resnet110, see NOTES.
    ("resnet56", "resnet8", "kd"): (88.65, "TAKD"),
    ("resnet56", "resnet8", "kd_sum"): (88.65, "TAKD"),
}

# How a row differs from what was published, by (dataset, teacher, student, method).
_ASSISTANT = (
    "published with resnet110 as the teacher, here resnet56; lambda and T were searched and are "
    "not published for this pair, here 0.4 and 5"
)
NOTES = {
    ("cifar10", "", "resnet8", ""): "published: the best epoch on the test set",
    ("cifar10", "resnet56", "resnet8", "kd"): f"{_ASSISTANT}; the loss of the authors' code",
    ("cifar10", "resnet56", "resnet8", "kd_sum"): f"{_ASSISTANT}; the loss of the paper's equation",
}

# Networks trained on the labels alone: RepDistiller's teachers and students; on CIFAR-10, of
# ALONE_SOURCES.
ALONE = {
    "cifar100": {
        "wrn_40_2": 75.61,
        "resnet56": 72.34,
        "resnet110": 74.31,
        "resnet32x4": 79.42,
        "vgg13": 74.64,
        "resnet50": 79.34,
        "wrn_16_2": 73.26,
        "wrn_40_1": 71.98,
        "resnet20": 69.06,
        "resnet32": 71.14,
        "resnet8x4": 72.50,
        "vgg8": 70.36,
        "mobilenet_v2": 64.60,
        "shufflenet_v1": 70.50,
        "shufflenet_v2": 71.82,
    },
    "cifar10": {"resnet110": 93.86, "resnet20": 92.37, "resnet8": 88.52},
}
ALONE_SOURCES = {
    ("cifar10", "resnet110"): "KD-Zoo",
    ("cifar10", "resnet20"): "KD-Zoo",
    ("cifar10", "resnet8"): "TAKD",
}
