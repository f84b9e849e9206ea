"""Faults of end-to-end sensitivities and of what is divided by them."""

from __future__ import annotations

from tests.bench.mutants.fault import faults

CALIBRATION = "tests/stages/calibration/test_sweep.py"
ALLOCATION = "tests/stages/allocation/test_lagrangian.py"
WEIGHTS = "tests/stages/weights/test_bit_widths.py"

FAULTS = [
    *faults(
        "stages/denoiser/adjoint.py",
        CALIBRATION,
        ("range(start, start + size)):", "range(0, size)):"),
        ("return [x.grad if needed", "return [2 * x.grad if needed"),
        ("through = linear(gradient, weight.T)", "through = linear(gradient, weight.T) * 0.5"),
        ("if not isinstance(latents, Tensor) or not latents.requires_grad:", "if not isinstance(latents, Tensor):"),
        ("of_samples(along, of, start, start + size)", "of_samples(along, of, 0, size)"),
    ),
    *faults(
        "stages/numerics/effects.py",
        CALIBRATION,
        ("found[:, place].T for place", "found[:, 0].T for place"),
        ("found[..., rows] -= torch", "found[..., rows] += torch"),
        ("[sample % of for sample in samples]", "[0 for sample in samples]"),
    ),
    *faults(
        "stages/calibration/sweep_worker.py",
        CALIBRATION,
        ("weights[:, step, rounding.place] +=", "weights[:, step, rounding.place] ="),
        ("activations[:, one.step, one.rounding.place] +=", "activations[:, one.step, one.rounding.place] ="),
        ("(self.settings.seed, at.draw, at.batch)", "(self.settings.seed, at.batch, at.draw)"),
        ("one.gradient for one in shared", "shared[0].gradient for one in shared"),
    ),
    *faults(
        "stages/calibration/fisher.py",
        "tests/stages/calibration/test_fisher_stage.py",
        (', "rounding": rounding', ""),
        ("return 1 + len(sweep_units(context))", "return len(sweep_units(context))"),
    ),
    *faults(
        "stages/allocation/search.py",
        ALLOCATION,
        ('"bits": list(widths_of(search, recipe.allocation))', '"bits": []'),
    ),
    *faults(
        "stages/weights/solve.py",
        WEIGHTS,
        ('without_meaning.add("weight_budget")', "pass"),
    ),
    *faults(
        "stages/calibration/effects.py",
        f"{CALIBRATION} {ALLOCATION} tests/stages/calibration/test_effects.py",
        ("math.pi / 2 * np.abs(effects_N).mean(0) ** 2", "(effects_N**2).mean(0)"),
        ("self.activations[..., WIDTHS.index(4)]", "self.activations[..., WIDTHS.index(8)]"),
        ("(self.weights.sum(1) ** 2).sum(1)", "(self.weights ** 2).sum((1, 2))"),
        ('== "trajectory" and not obstacle_of(context)', '== "trajectory"'),
    ),
    *faults(
        "stages/numerics/lagrange.py",
        "tests/stages/numerics/test_lagrange.py",
        ("price = price / mean if mean > 0", "price = price if mean > 0"),
        ("float(slope[min(whole, len(slope) - 1)])", "float(slope[max(whole - 1, 0)])"),
        ("taken = slope > multiplier", "taken = slope > 2 * multiplier"),
        ('side="right"', 'side="left") + 1 - int("0"'),
        ("return self._filled(choice, left), ", "return choice, "),
        ("before[order[1:][same]] = target[order[:-1][same]]", "pass"),
        ("np.lexsort((target, item))", "np.lexsort((item, target))"),
        ("fits = np.where(price <= left, rate, -1.0)", "fits = np.where(price <= 2 * left, rate, -1.0)"),
    ),
    *faults(
        "stages/allocation/lagrangian.py",
        ALLOCATION,
        ("own / np.sqrt(effects.latents)[:, None, None]", "own"),
        ("[:, self._by_layer]", ""),
        (" * coherence(alike_CTLW[:, :, np.unique(layers_N)])", ""),
        ("pooled(squared(alike_CTLW)[steps_N, layers_N], layers_N)", "squared(alike_CTLW)[steps_N, layers_N]"),
        ("squared(effects_CTLW.sum(1))", "squared(np.abs(effects_CTLW).sum(1))"),
        ("logs_NW - place_N1)", "logs_NW)"),
        ("(logs_NW + product_NW) / 2", "product_NW"),
        ("np.exp(np.log(np.maximum(errors_C, 1e-300)).mean())", "errors_C.mean()"),
        ("mean**across *", "mean *"),
        ('self.macs_N if price == "macs" else None', "None"),
        ("if not self.end_to_end:\n            return None", "if False:\n            return None"),
    ),
    *faults(
        "stages/weights/bit_widths.py",
        WEIGHTS,
        ("alike().weights.sum(1)", "alike().weights.__abs__().sum(1)"),
        ("cost_N[:, None] * law, WEIGHT_WIDTHS, sizes)", "cost_N[:, None] * law, WEIGHT_WIDTHS)"),
        (".at_budget(recipe.weight_budget)", ".at_budget(float(recipe.weight_bits))"),
        ("if not is_end_to_end(context):", "if False:"),
    ),
    *faults(
        "stages/weights/solve_worker.py",
        WEIGHTS,
        ("spec_of(self.recipe, row, group=group, bits=bits)", "spec_of(self.recipe, row, group=group)"),
    ),
]
