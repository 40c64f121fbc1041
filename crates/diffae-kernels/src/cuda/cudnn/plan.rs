//! Plans: the engine of cuDNN that computes an operation, chosen once for each size.

use std::sync::Arc;

use candle_core::{Error, Result, bail};

use super::descriptor::{Address, Descriptor, Handle, HeuristicsMode, Kind, NumericalNote};
use super::library::Library;
use crate::cuda::convolution::Convolution;
use crate::cuda::plan::Element;

/// Numbers of attributes in cuDNN 9.
mod names {
    use std::ffi::c_int;

    pub(super) const HEURISTICS_MODE: c_int = 200;
    pub(super) const HEURISTICS_GRAPH: c_int = 201;
    pub(super) const HEURISTICS_RESULTS: c_int = 202;
    pub(super) const CONFIG_ENGINE: c_int = 300;
    pub(super) const PLAN_HANDLE: c_int = 400;
    pub(super) const PLAN_CONFIG: c_int = 401;
    pub(super) const PLAN_WORKSPACE: c_int = 402;
    pub(super) const VARIABLES_IDS: c_int = 1000;
    pub(super) const VARIABLES_ADDRESSES: c_int = 1001;
    pub(super) const VARIABLES_WORKSPACE: c_int = 1003;
    pub(super) const ENGINE_NOTES: c_int = 1303;
    pub(super) const ENGINE_INDEX: c_int = 1301;
    pub(super) const HEURISTICS_DEVICE: c_int = 204;
    pub(super) const PLAN_DEVICE: c_int = 407;
    #[cfg(test)]
    pub(super) const DEVICE_TEXT: c_int = 2702;
}

/// Heuristics that are asked, in this order: the best ones, and engines that can do everything.
const HEURISTICS: [HeuristicsMode; 2] = [HeuristicsMode(3), HeuristicsMode(2)];
/// Engines on tensor cores, which compute on f32 in TF32.
const TENSOR_CORE: NumericalNote = NumericalNote(0);
/// Notes of engines that are never taken: numbers rounded below those of the tensors before or within sums, transforms (by Fourier,
/// and by Winograd with four kinds of tiles) that round more than a sum of products, and results that differ from run to run.
const REFUSED: [NumericalNote; 8] = [
    NumericalNote(1),
    NumericalNote(2),
    NumericalNote(3),
    NumericalNote(4),
    NumericalNote(5),
    NumericalNote(6),
    NumericalNote(7),
    NumericalNote(8),
];
/// Largest number of notes of an engine that is asked for.
const MAX_NOTES: usize = 32;
/// Workspace that a plan may have at any rate, in bytes; else it may be as large as twice the tensors, which engines on tensor cores
/// keep in another order there.
const MAX_WORKSPACE: usize = 1 << 30;

/// The card for which plans are made.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// The card of a handle.
    Handle(&'a Handle),
    /// One that need not be there, by its properties.
    #[cfg_attr(not(test), expect(dead_code, reason = "plans for a card that is not there are made by tests"))]
    Properties(&'a Descriptor),
}

impl Target<'_> {
    pub(super) fn handle(&self) -> Option<&Handle> {
        match self {
            Self::Handle(handle) => Some(handle),
            Self::Properties(_) => None,
        }
    }

    /// Returns the properties of a card that need not be there, from the text that cuDNN writes of one.
    #[cfg(test)]
    pub(super) fn properties(library: &Arc<Library>, text: &str) -> Result<Descriptor> {
        Descriptor::new(library, Kind::DeviceProperties)?.with_text(names::DEVICE_TEXT, text)?.finalized()
    }

    fn on_heuristics(&self, heuristics: Descriptor) -> Result<Descriptor> {
        match self {
            Self::Handle(_) => Ok(heuristics), // the graph has it
            Self::Properties(properties) => heuristics.with_descriptors(names::HEURISTICS_DEVICE, &[properties]),
        }
    }

    fn on_plan(&self, plan: Descriptor) -> Result<Descriptor> {
        match self {
            Self::Handle(handle) => plan.with_handle(names::PLAN_HANDLE, handle),
            Self::Properties(properties) => plan.with_descriptors(names::PLAN_DEVICE, &[properties]),
        }
    }
}

/// A plan of a convolution.
#[derive(Debug)]
pub(in crate::cuda) struct Plan {
    descriptor: Descriptor,
    /// Number of the engine.
    engine: i64,
    workspace: usize,
    /// Descriptors to which the plan refers: the graph, and its configuration.
    _parts: Vec<Descriptor>,
}

impl Plan {
    /// Makes the plan of a convolution on the card of a handle; `None` if no engine of cuDNN computes it as it should be.
    ///
    /// Of the engines that cuDNN's heuristics list, the fastest first, it takes the first one that gives the same bits whenever it is
    /// run, rounds as the number type says, and needs at most 1 GiB, or twice the memory of the tensors.
    ///
    /// # Errors
    /// If cuDNN does not know such a convolution.
    pub(in crate::cuda) fn new(handle: &Handle, convolution: &Convolution) -> Result<Option<Self>> {
        Self::on(handle.library(), &Target::Handle(handle), convolution)
    }

    /// Makes a plan for a card, as [`new`](Self::new) does.
    pub(super) fn on(library: &Arc<Library>, target: &Target<'_>, convolution: &Convolution) -> Result<Option<Self>> {
        let mut parts = convolution.graph(library, target)?;
        for mode in HEURISTICS {
            let Some(graph) = parts.first() else { bail!("a graph without operations") };
            // Heuristics that know no engine say so by an error, or by an empty list.
            let Ok(configs) = configs(library, target, graph, mode) else { continue };
            for config in configs {
                let engine = config.get_descriptor(names::CONFIG_ENGINE, Kind::Engine)?;
                if !is_allowed(&engine, convolution)? {
                    continue;
                }
                // An engine may find out here that it cannot do it after all.
                let Ok((descriptor, workspace)) = finalized(library, target, &config) else { continue };
                if workspace > MAX_WORKSPACE.max(2 * num_bytes(convolution)) {
                    continue;
                }
                let engine = engine.get_one(names::ENGINE_INDEX)?;
                parts.push(config);
                return Ok(Some(Self { descriptor, engine, workspace, _parts: parts }));
            }
        }
        Ok(None)
    }

    /// Returns the size of the memory that the plan needs besides its tensors, in bytes.
    pub(in crate::cuda) fn workspace(&self) -> usize {
        self.workspace
    }

    /// Starts the plan on the handle's stream. `addresses`: input, weight and output, of which the direction of the convolution names
    /// the one that is written.
    ///
    /// # Safety
    /// The addresses are those of tensors of the sizes and the number type of the plan's convolution, aligned to [`ALIGNMENT`]
    /// bytes, and of a workspace, on the card of the handle; they live until the work on its stream has come to its end.
    /// # Errors
    /// If the card fails.
    ///
    /// [`ALIGNMENT`]: crate::cuda::convolution::ALIGNMENT
    #[expect(unsafe_code, reason = "addresses on a card")]
    pub(in crate::cuda) unsafe fn execute(&self, handle: &Handle, addresses: [u64; 3], workspace: u64) -> Result<()> {
        let variables = Descriptor::new(handle.library(), Kind::VariantPack)?
            .with(names::VARIABLES_IDS, &Convolution::IDS)?
            .with(names::VARIABLES_ADDRESSES, &addresses.map(Address))?
            .with(names::VARIABLES_WORKSPACE, &[Address(workspace)])?
            .finalized()?;
        // SAFETY: as the caller promises.
        let started = unsafe { self.descriptor.execute(handle, &variables) };
        started.map_err(|error| Error::Msg(format!("engine {} of cuDNN: {error}", self.engine)))
    }

    /// Returns the number of the engine.
    #[cfg(test)]
    pub(super) fn engine(&self) -> i64 {
        self.engine
    }
}

/// Returns the bytes of the tensors of a convolution together.
fn num_bytes(convolution: &Convolution) -> usize {
    let size = match convolution.element {
        Element::F32 => 4,
        Element::F16 | Element::Bf16 => 2,
    };
    convolution.dims().iter().map(|dims| size * dims.iter().product::<usize>()).sum()
}

/// Lists the configurations of engines for a graph, the fastest first.
fn configs(
    library: &Arc<Library>,
    target: &Target<'_>,
    graph: &Descriptor,
    mode: HeuristicsMode,
) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(library, Kind::EngineHeuristics)?
        .with_descriptors(names::HEURISTICS_GRAPH, &[graph])?
        .with(names::HEURISTICS_MODE, &[mode])?;
    let heuristics = target.on_heuristics(heuristics)?.finalized()?;
    heuristics.get_descriptors(names::HEURISTICS_RESULTS, Kind::EngineConfig)
}

/// Returns whether an engine rounds as the convolution is to be rounded, and to the same bits in each run.
fn is_allowed(engine: &Descriptor, convolution: &Convolution) -> Result<bool> {
    let notes: Vec<NumericalNote> = engine.get(names::ENGINE_NOTES, MAX_NOTES)?;
    let has_tensor_cores = convolution.tf32 || convolution.element != Element::F32;
    Ok(notes.iter().all(|note| !REFUSED.contains(note) && (has_tensor_cores || *note != TENSOR_CORE)))
}

/// Finalizes the plan of a configuration; returns it with the size of its workspace.
fn finalized(library: &Arc<Library>, target: &Target<'_>, config: &Descriptor) -> Result<(Descriptor, usize)> {
    let plan = Descriptor::new(library, Kind::ExecutionPlan)?;
    let plan = target.on_plan(plan.with_descriptors(names::PLAN_CONFIG, &[config])?)?.finalized()?;
    let workspace: i64 = plan.get_one(names::PLAN_WORKSPACE)?;
    Ok((plan, usize::try_from(workspace).unwrap_or(usize::MAX)))
}
