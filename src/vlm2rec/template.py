"""The configuration to start from: `template.toml`, made to fit a data set where one is given."""

import json
from importlib.resources import files
from pathlib import Path

from vlm2rec.errors import InputError
from vlm2rec.runs import write_text


def write_config(out: Path, data: Path | None = None) -> str:
    """Write a commented configuration to start from; what to read before it is run, empty without a data set.

    Args:
        out: the file.
        data: a prepared data set, which the file will name.

    Raises:
        InputError: `out` is there already, or `data` is no data set.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; give another name")
    text = files("vlm2rec").joinpath("template.toml").read_text(encoding="utf-8")
    said = []
    if data is not None:
        from vlm2rec.alternatives import alternatives_text
        from vlm2rec.data.dataset import Dataset
        from vlm2rec.data.splits import Split

        dataset = Dataset.load(data)
        text = text.replace('path = "data/mine" ', f"path = {json.dumps(str(data))} ")
        if not any(dataset.pictures.digests):
            said.append(
                'the data set has no pictures: the file says prompt.modalities = "text" and method.kind = "sft"'
            )
            text = text.replace(
                '# modalities = "both"   # or "text", "image"', 'modalities = "text"     # no pictures here'
            )
            text = text.replace('kind = "vlm2rec"        #', 'kind = "sft"            #')
        import torch  # takes seconds, and without a data set nothing is asked of it

        if not torch.cuda.is_available():
            said += [
                "this machine has no GPU, and the file's backbone needs one",
                "",
                alternatives_text(Split(dataset)),
            ]
        said.append(f"`vlm2rec doctor {out}` tells whether the backbone can read these titles")
    write_text(out, text)
    return "\n".join(said)
