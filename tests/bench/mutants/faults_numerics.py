"""Faults of the mathematics."""

from tests.bench.mutants.fault import faults

NUMERICS = "tests/stages/numerics/test_"
LINEAR = "tests/stages/runtime/test_linear.py"

FAULTS = [
    *faults(
        "stages/numerics/gptq.py",
        f"{NUMERICS}gptq.py",
        ("t.addmv_(errors[start:i].T, feedback[i, start:i])", "pass"),
        ("feedback[start:stop, :start], errors[:start])", "feedback[start:stop, :start], errors[:start], alpha=0)"),
        ("clamp_(0, grid.qmax)", "clamp_(0, grid.qmax - 1)"),
        ("filled + used * mean", "filled + used"),
        ("filled - diagonal + used * mean", "used * mean + 0 * filled"),
        ("off * factor.D_I", "off * factor.D_I.sqrt()"),
        ("restored[order] = codes", "restored.copy_(codes)"),
        ("descending=True", "descending=False"),
        ("alpha=2)", "alpha=1)"),
    ),
    *faults(
        "stages/numerics/grid.py",
        f"{NUMERICS}grid.py {LINEAR}",
        ("torch.div(w, scale).round_().add_(zero)", "torch.div(w, scale).floor_().add_(zero)"),
        ("torch.sub(codes.to(scale.dtype), zero).mul_(scale)", "codes.to(scale.dtype).mul_(scale)"),
        ("better = error < self._least", "better = error > self._least"),
        ("mul_(CLIP_NORM)", "mul_(2.0)"),
        ("reach = stride // 2", "reach = 0"),
        ("ranges[0].div((qmax - 1) / 2)", "ranges[0].div((qmax + 1) / 2)"),
        (".clamp_(max=half - 1)", ".clamp_(max=half)"),
        (".clamp_(max=ceiling)", ""),
        ("torch.where(x < 0, below, above)", "torch.where(x < 0, above, below)"),
    ),
    *faults(
        "stages/numerics/packing.py",
        f"{NUMERICS}packing.py",
        ("words[:, segment] >> (8 - shift)", "words[:, segment] >> (7 - shift)"),
        ("planes[:, plane + 1] << (8 - shift)", "planes[:, plane + 1] << (7 - shift)"),
    ),
    *faults(
        "stages/numerics/policy.py",
        f"{NUMERICS}policy.py",
        ("return 1 / (2.0**bits - 1) ** 2", "return 1 / (2.0**bits - 1)"),
        ("mean**across", "mean"),
        ("(errors[i] - errors[now]) / (bits[i] - bits[now])", "(errors[i] - errors[now])"),
        ("total = sum(weights) * self.steps", "total = sum(weights)"),
    ),
    *faults(
        "stages/numerics/beam.py",
        f"{NUMERICS}beam.py",
        ("error=parent.error + errors[choices]", "error=errors[choices]"),
        ("path.error < front[-1].error", "path.error > front[-1].error"),
        ("path.price + price + rest <= limit", "path.price + price <= limit"),
    ),
    *faults(
        "stages/numerics/sensitivity.py",
        f"{NUMERICS}sensitivity.py tests/stages/calibration/test_hessian.py tests/stages/calibration/test_fisher.py",
        ("(scores - scores.max()) / tau, 0), tau", "(scores.max() - scores) / tau, 0), tau"),
    ),
    *faults(
        "stages/numerics/smoothing.py",
        f"{NUMERICS}smoothing.py",
        ("pow(1 - alpha)", "pow(alpha)"),
        ("(below + upto - 1).double() / 2", "below.double()"),
        ("torch.softmax(-rho, 0)", "torch.softmax(rho, 0)"),
    ),
    *faults(
        "stages/numerics/lowrank.py",
        f"{NUMERICS}lowrank.py",
        ("fake_quantize((w - low).float()).double()", "fake_quantize(w.float()).double()"),
        ("(u[:, :rank] * root)", "(u[:, :rank] * s[:rank])"),
    ),
    *faults(
        "stages/numerics/timegroups.py",
        f"{NUMERICS}timegroups.py",
        ("step * min(groups, steps) // steps for", "0 for"),
        ("return GELU_MINIMUM <= least < 0", "return least < 0"),
        ("2 * target * values).sum(1", "target * values).sum(1"),
    ),
    *faults(
        "stages/numerics/transform.py",
        f"{NUMERICS}transform.py {LINEAR}",
        ("torch.sub(first, second, alpha=2, out=second)", "torch.sub(first, second, alpha=1, out=second)"),
        ("h / block**0.5", "h / block"),
        ("torch.kron(smallest, h)", "torch.kron(h, smallest.flip(1))"),
        ("float(h_BB[0, 3]) > 0", "float(h_BB[0, 0]) > 0"),
        ("    _transpose(gram_II)", "    pass"),
    ),
    *faults(
        "stages/numerics/greedy.py",
        f"{NUMERICS}greedy.py",
        ("rounds[1::2].flip(1)", "rounds[1::2]"),
        ("if peaks.max() < least:", "if True:"),
        ("whole @ step, parts", "step @ whole, parts"),
    ),
    *faults(
        "stages/numerics/gram.py",
        f"{NUMERICS}gram.py tests/stages/calibration/test_hessian.py",
        ("w.item() / n for w", "w.item() for w"),
        ("alpha=scales[name][step]", "alpha=scales[name][0]"),
        ("own[:, start + size :].T", "own[:, start + size :].T * 0"),
    ),
    *faults(
        "stages/numerics/magnitude.py",
        f"{NUMERICS}magnitude.py",
        ("v - (v - start) @ gram", "v"),
        ("penalty * start.abs().sum(1)", "penalty * start.abs().amax(1)"),
        ("(excess.gather(1, kept - 1) / kept)", "excess.gather(1, kept - 1)"),
    ),
    *faults(
        "stages/numerics/float4.py",
        f"{NUMERICS}float4.py",
        ("torch.frexp(peak)[1] - 1 - 2", "torch.frexp(peak)[1] - 2"),
        ("torch.ceil(torch.log2", "torch.floor(torch.log2"),
        (".clamp(0, 2) - 1.0)", ".clamp(0, 1) - 1.0)"),
    ),
    *faults(
        "stages/numerics/metrics.py",
        f"{NUMERICS}metrics.py tests/stages/evaluation/test_evaluate.py",
        ("10 * math.log10(peak * peak / mean)", "10 * math.log10(peak / mean)"),
        ("math.log(max(relative_error(sample, other), 1e-30))", "max(relative_error(sample, other), 1e-30)"),
    ),
]
