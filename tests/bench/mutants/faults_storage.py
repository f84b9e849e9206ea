"""Faults of the bytes at rest: markers, manifests, digests, mirrors of a bucket, leases."""

from tests.bench.mutants.fault import faults

STORAGE = "tests/storage/test_"

FAULTS = [
    *faults(
        "storage/manifest.py",
        f"{STORAGE}manifest.py",
        ("elif actual != size:", "elif actual < size:"),
        ("elif actual != size:", "elif actual > size:"),
        ("if marker is None or marker.unit != unit:", "if marker is None:"),
        ("self._remove(self._marker(unit), self._marker(COMPLETE))", "self._remove(self._marker(unit))"),
        ("if hashed(folder / name) != marker.files[name][1]]", "if False]"),
        ("self.remote.invalidate()", "pass"),
        ("for name in sorted(names):", "for name in names:"),
    ),
    *faults(
        "storage/marker.py",
        f"{STORAGE}marker.py",
        ('if body.pop("self") != digest_of_json(body):', 'if body.pop("self") == 0:'),
        ('is_safe_relative, (*files, body["unit"])', "is_safe_relative, files"),
        ("(stat.st_ino, stat.st_mtime_ns, stat.st_size))", "(0, 0, 0))"),
    ),
    *faults(
        "storage/files.py",
        f"{STORAGE}files.py",
        ("os.replace(partial, path)", "path.write_bytes(data)"),
        ('and ".." not in name.split("/")', 'and not name.startswith("..")'),
        ("<= COPY_LIMIT", "> COPY_LIMIT"),
        ("        path.chmod(mode)", "        pass"),
        ("shutil.copyfile(source / name, target / name)", "shutil.copy(source / name, target / name)"),
    ),
    *faults(
        "storage/fingerprint.py",
        f"{STORAGE}fingerprint.py",
        ("json.JSONEncoder(sort_keys=True,", "json.JSONEncoder("),
        ("old and old[:2] == (size, mtime)", "old and old[:1] == (size,)"),
        (", followlinks=True", ""),
    ),
    *faults(
        "storage/tensors.py",
        f"{STORAGE}tensors.py",
        ("members[name][1]) for name", "0) for name"),
        (".setdefault((tensor.dtype, tensor.shape), [])", ".setdefault(tensor.shape, [])"),
    ),
    *faults(
        "storage/tables.py",
        f"{STORAGE}tables.py",
        ("    for name in required:", "    for name in required[:1]:"),
    ),
    *faults(
        "storage/checkpoint.py",
        f"{STORAGE}checkpoint.py",
        ("{part: {name: math.prod(shape)", "{part: {name: sum(shape)"),
        ("tensors.update(lazy_tensors(path))", "tensors = lazy_tensors(path)"),
        ('config.pop("quantization_config", None)', "pass"),
    ),
    *faults("storage/weights.py", f"{STORAGE}checkpoint.py", ("weights_only=True, mmap", "weights_only=False, mmap")),
    *faults(
        "storage/weights.py",
        f"{STORAGE}weights.py",
        ("for name in sorted(tensors)}", "for name in tensors}"),
        ("max_shard_size=SHARD_BYTES", "max_shard_size=2 * SHARD_BYTES"),
        ("(_RANKS[str(tensors[name].dtype)][0], name.encode())", "name.encode()"),
    ),
    *faults(
        "storage/model_files.py",
        f"{STORAGE}model_files.py",
        ("place = next((place for place in places if place in there)", "place = next((place for place in there)"),
        ("os.path.basename(name) != name or not name", "not name"),
        ("if gone := [name for name in names if name not in there]:", "if gone := []:"),
        ("allowed += [", "allowed += [] and ["),
        ('(repository / "blobs", repository.parent / "blobs")', '(repository / "blobs",)'),
        ("if component.fault and not (configs_suffice and", "if component.fault and not (True and"),
        ('repository.startswith("models--")', "repository"),
        ("is_file() and is_inside(folder, name)}", "is_file()}"),
        ('ours = library == "diffusers" or', "ours ="),
    ),
    *faults(
        "storage/lease.py",
        f"{STORAGE}lease.py",
        ("if not _holds(_read(remote), token):", "if False:"),
        ('mode="create"', 'mode="overwrite"'),
        ("until = time.time() + seconds", "until = time.time()"),
    ),
    *faults(
        "storage/remote.py",
        f"{STORAGE}remote.py",
        ("or _size(self.local / n) != self.sizes[n]]", "]"),
        ("parts.username or parts.password or parts.query", "parts.password or parts.query"),
        ("self.sizes[name] = path.stat().st_size", "pass"),
    ),
    *faults(
        "storage/rundir.py",
        f"{STORAGE}rundir.py",
        ("if version != FORMAT:", "if version > FORMAT:"),
        ("            lock.acquire()\n", ""),
        ('if relative.startswith("..")', "if False"),
    ),
]
