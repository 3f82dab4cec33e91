"""Stage `resume`: goes on from a folder that an earlier training exported, where its state is gone.

The folder's parts become the states of the stages that made them, its averaged fp16 weights for both the last and the averaged ones;
optimisers begin anew.

    resume.py --state DIR [--folder models/train/checkpoint]
"""

import argparse
import json
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from run_state import Stage


def resume(state, folder):
    """Returns the stage that may go on."""
    folder = Path(folder)
    try:
        made = json.loads((folder / "training.json").read_text())
    except FileNotFoundError:
        raise SystemExit(f"{folder} does not say how far its training was: it has no training.json") from None
    if Stage(state, made["stage"]).load():
        raise SystemExit(f"{state} has a stage {made['stage']} of its own")
    parts = {"text": CLIPTextModel.from_pretrained(folder / "text_encoder").float(),
             "unet": UNet2DConditionModel.from_pretrained(folder / "unet").float()}
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    Stage(state, "vae").save(AutoencoderKL.from_pretrained(folder / "vae").float().state_dict())
    Stage(state, made["stage"]).save({"model": weights, "averaged": weights, "done": made["samples"], "begin": made["begin"],
                                      "fresh": made["samples"], "optimisers": []})
    return made["stage"]


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--state", required=True)
    a.add_argument("--folder", default=Path(__file__).resolve().parent / "checkpoint")
    args = a.parse_args()
    print(f"stage {resume(args.state, args.folder)} may go on")
