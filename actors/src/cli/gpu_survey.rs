//! What a GPU needs and what of it is here. A program without a GPU engine has nothing to look for.

use std::path::PathBuf;

use serde::Serialize;

/// GPUs, driver and libraries of this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Survey {
    /// What is needed, found or not.
    pub libraries: Vec<Library>,
    /// The GPUs that the driver names.
    pub devices: Vec<DeviceFacts>,
    /// Why none of them can be used, as one line; none if one can.
    pub problem: Option<String>,
}

/// A library that is loaded when the program runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Library {
    /// Its name without version and ending.
    pub name: &'static str,
    /// The file.
    pub found: Option<PathBuf>,
    /// Its version, if it could be loaded and says.
    pub version: Option<String>,
    /// Where it was looked for.
    pub searched: Vec<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceFacts {
    /// Its model.
    pub name: String,
    /// Major and minor number.
    pub compute_capability: (i32, i32),
    /// Its multiprocessors.
    pub num_sms: i32,
    /// Its memory.
    pub memory_bytes: u64,
    /// The CUDA version of its driver.
    pub driver_version: String,
}

/// Looks for all of it.
#[must_use]
pub fn survey() -> Survey {
    let problem = Some("this program was built without an engine for GPUs".to_owned());
    Survey { libraries: Vec::new(), devices: Vec::new(), problem }
}
