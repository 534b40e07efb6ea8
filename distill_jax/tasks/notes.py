"""Lines for the user that runs on images and on text have in common."""


def on_validation(path: str, seen: int | None, held_out: int, unit: str) -> str:
    """A line about a teacher and the validation split; "" where it has seen none of it.

    Args:
      path: of the teacher.
      seen: how many validation examples it was trained on; None for unknown.
      held_out: how many there are.
      unit: what an example is called, such as "examples".
    """
    if seen is None:
        return (
            f"teacher {path!r}: nothing tells whether it was trained on some of the {held_out} "
            f"validation {unit}, on which its figures would then not be comparable with the "
            "student's; teacher.saw_validation='yes' or 'no' does"
        )
    if not seen:
        return ""
    return (
        f"teacher {path!r}: was trained on {seen} of the {held_out} validation {unit}; its figures "
        "there are not comparable with the student's, those of the test split are"
    )
