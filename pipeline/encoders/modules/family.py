"""The family of one definition: an encoder made of a torch module."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.modules.building import BuiltModule, build_module
from pipeline.encoders.modules.definition import ModuleDefinition
from pipeline.encoders.modules.encoder import ModuleEncoder
from pipeline.encoders.modules.probing import Probe, probe_module
from pipeline.errors import WeightsError


class ModuleFamily:
    """One encoder made of a module; see `EncoderFamily`.

    Its description calls the factory and runs the module, once in a process, to find its frames.
    Workers get the results with the definition.
    """

    def __init__(self, definition: ModuleDefinition) -> None:
        """Nothing runs yet."""
        self.definition = definition
        self._probes: dict[int, Probe] = {}  # by the seed of the weights

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the module as it was found by running it; see `EncoderFamily`."""
        if model.seed not in self._probes:
            built = build_module(self.definition, model.seed)
            self._probes[model.seed] = probe_module(self.definition, built)
        return self._description(self._probes[model.seed])

    def load(self, model: ModelConfig, settings: EncoderSettings) -> ModuleEncoder:
        """Call the factory again; see `EncoderFamily`.

        Raises:
            WeightsError: It gives other weights than before.
        """
        definition = self.definition
        built = build_module(definition, model.seed)
        if model.seed not in self._probes:
            self._probes[model.seed] = probe_module(definition, built)
        probe = self._probes[model.seed]
        _check_weights(definition, built, probe)
        return ModuleEncoder(definition, built, probe, self._description(probe), settings)

    def _description(self, probe: Probe) -> EncoderDescription:
        definition = self.definition
        return EncoderDescription(
            name=definition.name,
            n_layers=len(definition.layers),
            dim=probe.dims[0],
            geometry=probe.geometry,
            max_window_s=definition.max_window_s,
            context_s=definition.context_s,
            layer_names=dict(enumerate(definition.layers, 1)),
            layer_dims=_other_dims(probe),
        )


def _other_dims(probe: Probe) -> Mapping[int, int]:
    return {i: dim for i, dim in enumerate(probe.dims, 1) if dim != probe.dims[0]}


def _check_weights(definition: ModuleDefinition, built: BuiltModule, probe: Probe) -> None:
    if built.sha256 != probe.sha256:
        raise WeightsError(
            f"the factory {definition.factory.name} gave other weights at its second call (sha256 "
            f"{built.sha256[:8]}, before {probe.sha256[:8]}): a store needs the same in every "
            "process. Load them from a file; random numbers of torch are seeded already"
        )
