import torch

import gingham
from helpers import fit

FAST = gingham.RECIPES["fast-85"].replace(hard_share=1.0)


# --- through fit


def test_ema_equals_a_slow_reference(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = FAST.replace(epochs=12, batch_size=260)  # each epoch is one step
    seen = []
    plain = fit(
        recipe, data, on_epoch=lambda model, _: seen.append({k: v.clone() for k, v in model.state_dict().items()})
    )
    mean = dict(seen[0])
    for step, weights in enumerate(seen):
        kept = min(0.4, (1 + step) / (10 + step))
        for name, tensor in weights.items():
            mean[name] = kept * mean[name] + (1 - kept) * tensor if tensor.is_floating_point() else tensor
    averaged = fit(recipe.replace(ema_decay=0.4), data)
    for name in (
        "temperature",
        "threshold",
        "photo_threshold",
    ):  # fitted at the end of training, as is the novelty score
        getattr(averaged.model, name).copy_(mean[name])
    averaged.model.novelty = None
    for name, tensor in averaged.model.state_dict().items():
        assert torch.allclose(tensor.float(), mean[name].float(), atol=1e-6), name
    assert [entry["loss"] for entry in plain.history if "learning_rate" in entry] == [
        entry["loss"] for entry in averaged.history if "learning_rate" in entry
    ], "the EMA does not change the training"
