"""Faults of the command line's plans and reports, and of the executors."""

from tests.bench.mutants.fault import faults

PIPELINE = "tests/pipeline/test_"

FAULTS = [
    *faults(
        "cluster/failure_tracker.py",
        "tests/cluster/test_failure_tracker.py",
        ("<= self._retries and", "< self._retries and"),
        ('getattr(error, "fatal", False) or', ""),
        ("if not self._successes and", "if"),
        ("others = tuple(sorted(set(self._given_up) - {task}))", "others = ()"),
        ('getattr(error, "retryable", True)', "True"),
    ),
    *faults(
        "cluster/resources.py",
        "tests/cluster/test_resources.py",
        ("int(self.gpus / self.gpus_per_worker)", "int(self.gpus * self.gpus_per_worker)"),
        ("for share, available in shares if share", "for share, available in shares[:1] if share"),
    ),
    *faults(
        "cluster/inline_executor.py",
        "tests/cluster/test_inline_executor.py",
        ("failures.succeeded()", "pass"),
        ("        failures.raise_failures()\n", ""),
        ("self._stopping = True", "pass"),
    ),
    *faults(
        "cluster/spare_tasks.py",
        "tests/cluster/test_spare_tasks.py",
        ("if attempt.worker_class == worker_class and attempt.task in tasks", "if attempt.task in tasks"),
        (
            "        if worker_class == self._worker_class:\n            self._waiting.clear()",
            "        self._waiting.clear()",
        ),
        ("            del self.running[reference]\n", "            pass\n"),
        ("if actor not in taken", "if True"),
    ),
    *faults(
        "cluster/worker_slot.py",
        "tests/cluster/test_worker_slot.py tests/cluster/test_inline_executor.py",
        ("self._identity != identity", "False"),
        ("if recover is None or not recover(task, error):", "if True:"),
        ("identity = (worker_class, context)", "identity = (context,)"),
    ),
    *faults(
        "cluster/wheel.py",
        "tests/cluster/test_wheel.py",
        ("not in (*exclude, distribution)", "not in exclude"),
        ('for extra in ("", *extras)', 'for extra in ("",)'),
        ("sorted({str(requirement)", "list({str(requirement)"),
        ('f"{name}\\0{len(data)}\\0".encode() + data', 'f"{name}\\0{len(data)}\\0".encode()'),
    ),
    *faults(
        "pipeline/plan.py",
        f"{PIPELINE}plan.py",
        ("complete=marked and not damaged", "complete=marked"),
        ("if others and not units else []", "if others else []"),
        ("done=len(sound)", "done=len(units)"),
        ("[name for name in names if name in chosen]", "chosen"),
        ("names[names.index(first) : names.index(last) + 1]", "names[names.index(first) : names.index(last)]"),
        ('"version": stage.version,', ""),
    ),
    *faults(
        "pipeline/beside.py",
        f"{PIPELINE}beside.py",
        ("if step is None or not units or name not in stages or step.complete:", "if step is None or not units:"),
        ("    run.record_identity(name, step.fingerprint, dict(step.identity))\n", ""),
        ("list(context.manifest(name).missing(units))", "list(units)"),
    ),
    *faults(
        "stages/evaluation/evaluate.py",
        f"{PIPELINE}beside.py",
        ("if draw not in missing", ""),
        ('if not context.manifest("assemble").done("model"):', "if False:"),
    ),
    *faults(
        "pipeline/placement.py",
        f"{PIPELINE}placement.py",
        ("max(peaks) - weights", "max(peaks)"),
        ("min(MOST, max(1, memory // need.total))", "max(1, memory // need.total)"),
        ("int(10_000 / self.workers) / 10_000", "1.0"),
    ),
    *faults(
        "pipeline/config.py",
        f"{PIPELINE}config.py",
        ('merged(sampling(model), filled["model"])', 'merged(filled["model"], sampling(model))'),
    ),
    *faults(
        "pipeline/captions.py",
        f"{PIPELINE}config.py",
        ("splitlines()[::2]", "splitlines()[1::2]"),
        ('split = "held_out" if held_out else "train"', 'split = "train"'),
    ),
    *faults(
        "pipeline/paired.py",
        f"{PIPELINE}paired.py",
        ("gains = [own - other for", "gains = [other - own for"),
        ("DECIBELS * (other - own)", "DECIBELS * (own - other)"),
        ("values[caption::captions]", "values[:captions]"),
        ('math.log(max(picture["latent_error"], LEAST_ERROR))', 'picture["latent_error"]'),
        ("/ math.sqrt(len(values))", "/ len(values)"),
        ('BASELINES = ("adatsq", "rtn")', 'BASELINES = ("rtn", "adatsq")'),
        ("statistics.median(psnr)", "statistics.fmean(psnr)"),
    ),
    *faults(
        "pipeline/compare_table.py",
        f"{PIPELINE}compare_table.py",
        (
            'row["latent_error_geometric"] < chosen[key]["latent_error_geometric"]',
            'row["latent_error_geometric"] > chosen[key]["latent_error_geometric"]',
        ),
        ('-row["psnr"] if gain is None else -gain', '-row["psnr"]'),
        ("-10 * math.log10", "-20 * math.log10"),
    ),
    *faults(
        "pipeline/commands/pick.py",
        "tests/pipeline/commands/test_pick.py",
        ("10 ** (-float(match[1]) / 10)", "10 ** (-float(match[1]) / 20)"),
        (") != 1:", ") == 0:"),
        ("        write_request(place, config)", "        pass"),
        ("range(place - AROUND, place + AROUND + 1)", "range(place, place + AROUND + 1)"),
    ),
    *faults(
        "pipeline/compare.py",
        f"{PIPELINE}compare.py",
        ("if itself is None:", "if not itself:"),
    ),
    *faults(
        "pipeline/report.py",
        f"{PIPELINE}report.py",
        ("/ math.sqrt(len(means))", "/ len(means)"),
        ('max(values) if name == "latent_error" else min(values)', "min(values)"),
    ),
    *faults(
        "pipeline/costs.py",
        f"{PIPELINE}facts.py",
        ("bare = sum(", "bare = 2 * sum("),
        ("total - model - algebra", "total - model"),
        ("calls / reference[0]", "1.0 * captions / reference[0]"),
    ),
]
