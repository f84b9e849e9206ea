"""Faults of what users give: prompt files, calls, runs of several prompts, texts in pictures."""

from tests.bench.mutants.fault import faults

FAULTS = [
    *faults(
        "pipeline/prompts.py",
        "tests/pipeline/test_prompts.py",
        ('not 0 <= row["seed"] <= LARGEST_SEED', "False"),
        ("if any(inputs) else []", "if all(inputs) else []"),
        ("        _check_text(where, row[COLUMN])\n", "        pass\n"),
    ),
    *faults(
        "pipeline/prompt_rows.py",
        "tests/pipeline/test_prompts.py",
        ("ending = path.suffix.lower()", "ending = path.suffix"),
        ('_LINE_END = re.compile(r"\\r\\n|\\n|\\r")', '_LINE_END = re.compile(r"\\r\\n|\\n")'),
        ('return "utf-16-be" if even else "utf-16-le"', 'return "utf-16-le" if even else "utf-16-be"'),
        ("text = raw[len(mark) :].decode(encoding)", "text = raw.decode(encoding)"),
        ("if any(values)]", "]"),
        ("if len(values) > len(header):", "if False:"),
    ),
    *faults(
        "stages/denoiser/step_clock.py",
        "tests/stages/denoiser/test_step_clock.py",
        ("self.step += before != now", "self.step += 1"),
        ("if scheduler_step != self.scheduler_step:", "if True:"),
    ),
    *faults(
        "stages/denoiser/noise_levels.py",
        "tests/stages/denoiser/test_noise_levels.py",
        ("if self.steps != other.steps:", "if False:"),
        ("return tuple(nearest) == self.steps", "return True"),
        ("return (len(conditions.prompts), rows)", "return (rows,)"),
        ("most = max if self.timesteps[0] >= self.timesteps[-1] else min", "most = max"),
    ),
    *faults(
        "stages/calibration/capture_worker.py",
        "tests/stages/calibration/test_capture.py",
        ('check_alike("data", self.shards[batch], levels, self.shards[0], first)', "pass"),
    ),
    *faults(
        "stages/evaluation/bits_run.py",
        "tests/stages/evaluation/test_bits_run.py",
        ("sum(sums) / len(sums)", "sum(sums)"),
        ("if any(bits < WEIGHT_ONLY for bits in layer.policy.tolist())", ""),
    ),
    *faults(
        "stages/runtime/casting.py",
        "tests/stages/runtime/test_casting.py",
        ("[] if isinstance(module, QuantizedLinear) else list", "list"),
        ("if kept & set(name.split(", "if not kept and set(name.split("),
    ),
    *faults(
        "pipeline/plots/glyphs.py",
        "tests/pipeline/test_glyphs.py tests/pipeline/test_report_texts.py",
        ("if not name.startswith(PLACEHOLDERS) and", "if"),
        ('" " if unicodedata.category(c) in NOTHING else c', "c"),
        ("return () if missing else tuple(chosen)", "return tuple(chosen)"),
    ),
    *faults(
        "pipeline/plots/figures.py",
        "tests/pipeline/test_report_texts.py",
        ('"text.parse_math": False', '"text.parse_math": True'),
    ),
    *faults(
        "pipeline/notes.py",
        "tests/pipeline/test_report_texts.py",
        ("error.errno in FULL:", "False:"),
        ("        except DamagedUnit:\n            raise\n", ""),
    ),
]
