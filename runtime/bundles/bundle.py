"""A bundle: the folder that export writes and the runtime reads, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, nearest_word, unknown_word
from pinnace.runtime.bundles import integrity, verdicts
from pinnace.runtime.bundles.integrity import Identity
from pinnace.spec import AUTO, MANIFEST_NAME, PRECISIONS, Manifest, Variant

MAX_JSON_BYTES: Final = 16 << 20
_CHECKPOINT_SIGNS: Final = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.ckpt", "*.pt")


class Bundle:
    """An opened bundle. Make one with `Bundle.open`.

    Attributes:
        path: the folder, absolute.
        manifest: all facts of the bundle.
        verified: whether its files were checked.
    """

    def __init__(
        self, path: Path, manifest: Manifest, *, verified: bool, identities: Mapping[str, Identity] | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.verified = verified
        self._identities = identities or {}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle and check it.

        Args:
            path: the folder.
            verify: check names, links, SHA-256 and graphs of all files. The verdict is remembered by the files'
                identity in the user's cache folder, so that the next start costs nothing.

        Raises:
            BundleError: no such folder, not a bundle, or a missing, extra, renamed, changed or unsafe file.
        """
        folder = Path(path).expanduser().absolute()
        try:
            if not folder.is_dir():
                raise BundleError(_no_folder(folder))
            if not (folder / MANIFEST_NAME).exists():
                raise BundleError(_no_manifest(folder))
        except OSError as error:
            raise BundleError(f"cannot read the bundle {folder}: {error.strerror}") from None
        while True:
            identity = integrity.identify(folder, MANIFEST_NAME)
            try:
                return cls._open(folder, identity, verify)
            except BundleError:
                # Another process may have put a new bundle in this one's place while it was read.
                if integrity.identify(folder, MANIFEST_NAME).same_content(identity):
                    raise

    @classmethod
    def _open(cls, folder: Path, identity: Identity, verify: bool) -> Bundle:
        started = verdicts.now_ns()
        manifest = Manifest.from_json(integrity.read_text(folder / MANIFEST_NAME, MAX_JSON_BYTES))
        identities = {MANIFEST_NAME: identity}
        if verify:
            identities |= integrity.check_names(folder, manifest.files)
        bundle = cls(folder, manifest, verified=verify, identities=identities)
        bundle._check_references()
        if verify and not verdicts.is_remembered(folder, identities):
            bundle._check_contents()
            verdicts.remember(folder, identities, started)
        return bundle

    def check_same(self) -> None:
        """Check that the files are those that were opened: whoever reads some of them later calls this behind it.

        Raises:
            BundleError: they were changed, or the bundle was replaced.
        """
        for name, identity in self._identities.items():
            if not integrity.identify(self.path, name).same_content(identity):
                raise BundleError(f"{self.path} was replaced since it was opened: {name} is another file. Open it anew")

    def variant(self, precision: str | None = None) -> Variant:
        """Return the variant of a precision; None takes fp32 where present, else the first; ``"auto"`` as `precision`.

        Raises:
            UsageError: the bundle has no such variant; the text lists those it has.
        """
        return self.manifest.variants[self.precision(precision)]

    def precision(self, precision: str | None = None, device: str = "cpu") -> str:
        """Return the precision that a request means.

        Args:
            precision: a variant; None takes fp32 where present, else the first; ``"auto"`` takes the best verified one
                for the device on this machine, as `pinnace.runtime.bundles.variants` judges.
            device: where it will run.

        Raises:
            UsageError: as `variant`.
            MachineError: ``"auto"``, and no variant fits.
        """
        variants = self.manifest.variants
        if precision is None:
            return "fp32" if "fp32" in variants else next(iter(variants))
        if precision == AUTO:
            from pinnace.runtime.bundles.variants import best_variant  # with hashlib 10 ms, for auto alone

            return best_variant(self, device)
        if precision not in variants:
            raise unknown_word(f"precision of {self.path.name}", str(precision), [*variants, AUTO])
        return precision

    def graph_path(self, precision: str | None = None) -> Path:
        """Return the ONNX file of a precision.

        Raises:
            UsageError: as `variant`.
        """
        return self.path / self.variant(precision).graph

    def config(self) -> dict[str, Any]:
        """Return what ``config.json`` says, unchecked facts of the original checkpoint.

        Raises:
            BundleError: no such file, or not a JSON object.
        """
        return self.read_object("config.json")

    def read_object(self, name: str) -> dict[str, Any]:
        """Return the JSON object in one of the bundle's files.

        Raises:
            BundleError: no such file, one that is unsafe or too large, not a JSON object, or that of another bundle.
        """
        integrity.identify(self.path, name)
        found = integrity.read_object(self.path / name, MAX_JSON_BYTES)
        self.check_same()
        return found

    def _check_references(self) -> None:
        """Check that the files which the variants name are among the manifest's files."""
        manifest = self.manifest
        if not manifest.variants:
            raise BundleError(f"{MANIFEST_NAME} in {self.path} names no variant, so there is nothing to run")
        for precision, variant in manifest.variants.items():
            if precision not in PRECISIONS:
                raise BundleError(f"{MANIFEST_NAME} names the precision {precision!r}; known: {', '.join(PRECISIONS)}")
            for name in (variant.graph, *variant.weights):
                if name not in manifest.files:
                    raise BundleError(f"{MANIFEST_NAME}: variant {precision} uses {name}, which is not among the files")

    def _check_contents(self) -> None:
        from pinnace.runtime.bundles import hygiene  # 15 ms, which a start whose verdict is remembered does not need

        integrity.check_hashes(self.path, self.manifest.files)
        for variant in self.manifest.variants.values():
            hygiene.check_graph(self.path, variant.graph, self.manifest.files)
        for name in self.manifest.files:
            if name.endswith(".safetensors"):
                hygiene.check_weights(self.path / name)

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"Bundle({str(self.path)!r}, {manifest.task}, {manifest.head}, {', '.join(manifest.variants)})"


def _no_folder(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file; expected a bundle's folder, the one with {MANIFEST_NAME} in it"
    siblings = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    near = nearest_word(folder.name, siblings)
    hint = f" Did you mean {folder.parent / near}?" if near else ""
    return f"there is no folder {folder}.{hint} Make a bundle with: pinnace export MODEL --task TASK -o {folder.name}"


def _no_manifest(folder: Path) -> str:
    if (folder / "config.json").exists() and any(any(folder.glob(sign)) for sign in _CHECKPOINT_SIGNS):
        return (
            f"{folder} is a checkpoint, not a bundle (it has no {MANIFEST_NAME}). "
            f"Make a bundle of it with: pinnace export {folder} --task TASK"
        )
    nested = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST_NAME}"))
    hint = f" It is in {folder / nested[0]}; open that." if nested else ""
    return f"{folder} is not a bundle: {MANIFEST_NAME} is missing.{hint}"
