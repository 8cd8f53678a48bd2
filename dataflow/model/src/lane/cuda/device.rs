//! The entry of the GPU in the list of devices.

use std::sync::{Arc, Mutex, PoisonError};

use mlomae_device::{Priority, free_bytes, survey};

use super::lane::CudaLane;
use super::memory::needed_bytes;
use super::vector::Home;
use crate::choice::Named;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::lane::{Device, DeviceMemoryBound, Lane, LaneSize, Lanes, LanesSpec, MemorySpec};
use crate::model::Model;
use crate::parallel::arena::Arena;
use crate::precision::Precision;

/// NVIDIA GPUs.
#[derive(Debug)]
pub struct Cuda;

/// The opened device, which all lanes of a process share and which stays open to its end: threads keep its context
/// current.
pub(super) fn home() -> Result<Arc<Home>, ModelError> {
    static HOME: Mutex<Option<Arc<Home>>> = Mutex::new(None);
    let mut known = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(home) = &*known {
        return Ok(home.clone());
    }
    let home = Home::open()?;
    *known = Some(home.clone());
    Ok(home)
}

impl Named for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }
    fn summary(&self) -> &'static str {
        "The first NVIDIA GPU: needs driver, libnvrtc and libcublasLt"
    }
}

impl Device for Cuda {
    fn problem(&self) -> Option<String> {
        survey().problem.clone()
    }

    /// Everything that decides which algorithms are chosen.
    fn description(&self) -> String {
        let found = survey();
        let Some(gpu) = found.devices.first() else { return String::new() };
        let version = |name: &str| {
            let library = found.libraries.iter().find(|library| library.name == name);
            library.and_then(|library| library.version.clone()).unwrap_or_else(|| "unknown".to_owned())
        };
        format!(
            "{}, {} SMs, driver {}, libnvrtc {}, libcublasLt {}",
            gpu.name,
            gpu.num_sms,
            gpu.driver_version,
            version("libnvrtc"),
            version("libcublasLt")
        )
    }

    /// `MLOMAE_CUDA_RAW_IMAGES=0` decides otherwise.
    fn takes_raw_images(&self) -> bool {
        std::env::var_os("MLOMAE_CUDA_RAW_IMAGES").is_none_or(|value| value != "0")
    }

    fn memory_bound(&self, spec: &MemorySpec<'_>) -> Option<DeviceMemoryBound> {
        Some(DeviceMemoryBound { needed_bytes: needed_bytes(spec), available_bytes: free_bytes()? })
    }

    fn refuses(&self, _: Precision) -> Option<String> {
        None
    }

    fn unfit(&self, config: &ModelConfig) -> Option<String> {
        const MOST_PATCHES: usize = 4096;
        const WIDEST_HEAD: usize = 256;
        if config.num_patches() > MOST_PATCHES {
            return Some(format!(
                "engine cuda sorts up to {MOST_PATCHES} patches of an image, got {}",
                config.num_patches()
            ));
        }
        for (name, dim, heads) in [("heads", config.dim, config.heads), ("dec_heads", config.dec_dim, config.dec_heads)]
        {
            if dim / heads > WIDEST_HEAD {
                let got = dim / heads;
                return Some(format!(
                    "engine cuda has attention heads up to {WIDEST_HEAD} wide; more {name} are needed, got {got}"
                ));
            }
        }
        None
    }

    /// The encoder waits for scores, and the other levels for the encoder: these two come first where both have work.
    fn lanes(&self, spec: &LanesSpec) -> Result<Lanes, ModelError> {
        let home = home()?;
        let lane = |priority| -> Result<Box<dyn Lane>, ModelError> {
            Ok(Box::new(CudaLane::new(&home, &spec.model, of_device(spec.precision), priority)?))
        };
        Ok(Lanes {
            score: lane(Priority::High)?,
            pretrain: lane(Priority::High)?,
            finetune: lane(Priority::Normal)?,
            mask: lane(Priority::Normal)?,
        })
    }

    fn lane(
        &self,
        model: &Arc<Model>,
        _: &Arena,
        _: usize,
        precision: Precision,
        _: LaneSize,
    ) -> Result<Box<dyn Lane>, ModelError> {
        Ok(Box::new(CudaLane::open(model, precision)?))
    }
}

/// The precision as the device's streams take it.
pub(super) const fn of_device(precision: Precision) -> mlomae_device::Precision {
    match precision {
        Precision::F32 => mlomae_device::Precision::F32,
        Precision::Tf32 => mlomae_device::Precision::Tf32,
        Precision::Bf16 => mlomae_device::Precision::Bf16,
    }
}
