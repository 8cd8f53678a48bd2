//! Which of NVIDIA's libraries and devices this machine has.
//!
//! The driver comes with the system. libnvrtc and libcublasLt come with a CUDA toolkit or as pip wheels
//! (`nvidia-cuda-nvrtc`, `nvidia-cublas`). They are searched where the loader looks, then in the folders of toolkits,
//! then in the packages of the usual Pythons. What is found outside the loader's path is loaded by its path first:
//! later requests for its name find it then.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use crate::error::DeviceError;

/// What `mlomae gpu info` tells.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Survey {
    /// Driver, compiler and products, found or not.
    pub libraries: Vec<Library>,
    /// The GPUs, as the driver counts them.
    pub devices: Vec<DeviceFacts>,
    /// Why no GPU can be used, in one line; none if one can.
    pub problem: Option<String>,
}

/// One of NVIDIA's libraries.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Library {
    /// Its name without version, like `libnvrtc`.
    pub name: &'static str,
    /// Where it was found; only a name if the loader found it.
    pub found: Option<PathBuf>,
    /// Its version.
    pub version: Option<String>,
    /// Names and folders that were tried.
    pub searched: Vec<String>,
}

/// What a GPU is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceFacts {
    /// Its model.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub num_sms: i32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Shared memory that a block may have, in bytes.
    pub shared_bytes: usize,
    /// Version of CUDA that the driver speaks, like `13.0`.
    pub driver_version: String,
}

/// Oldest compute capability with bf16 tensor cores (Ampere).
const OLDEST: (i32, i32) = (8, 0);

struct Wanted {
    name: &'static str,
    /// Names for the loader, in the order in which cudarc tries them.
    names: &'static [&'static str],
    /// What to install.
    remedy: &'static str,
}

static WANTED: [Wanted; 3] = [
    Wanted { name: "libcuda", names: &["libcuda.so", "libcuda.so.1"], remedy: "install NVIDIA's driver" },
    Wanted {
        name: "libnvrtc",
        names: &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"],
        remedy: "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`",
    },
    Wanted {
        name: "libcublasLt",
        names: &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"],
        remedy: "install the CUDA toolkit, or `pip install nvidia-cublas`",
    },
];

/// Entries of a folder that begin with `prefix`, sorted from the last name to the first: newer versions come first.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

/// Roots of the Pythons that `python3` and `python` on the path are, behind their links, and of `.venv` here.
fn pythons() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut roots = vec![PathBuf::from(".venv")];
    for folder in std::env::split_paths(&path) {
        for name in ["python3", "python"] {
            let program = folder.join(name);
            // A virtual environment's root is beside its link, an installation's behind it.
            roots.extend(program.exists().then(|| folder.parent().map(Path::to_path_buf)).flatten());
            let real = program.canonicalize().ok();
            roots.extend(real.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_path_buf));
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        roots.extend(entries(&Path::new(&home).join(".pyenv/versions"), "3"));
    }
    roots
}

/// Folders that may hold the libraries though the loader does not look there.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable).collect();
    toolkits.extend(entries(Path::new("/usr/local"), "cuda"));
    toolkits.push("/opt/cuda".into());
    let mut folders: Vec<PathBuf> =
        toolkits.iter().flat_map(|root| [root.join("lib64"), root.join("targets/x86_64-linux/lib")]).collect();
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    roots.extend(variable("HOME").map(|home| home.join(".local")));
    roots.extend(["/usr/local".into(), "/usr".into()]);
    roots.extend(pythons());
    folders.extend(variable("CONDA_PREFIX").map(|root| root.join("lib")));
    for root in roots {
        for python in entries(&root.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = python.join(packages).join("nvidia");
                folders.extend(["cu13/lib", "cuda_nvrtc/lib", "cublas/lib"].map(|folder| nvidia.join(folder)));
            }
        }
    }
    folders.push("/usr/lib/wsl/lib".into());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    folders
}

/// Loads a library for the rest of the process, so that later requests for its name find it.
fn load(path: &std::ffi::OsStr) -> Result<(), String> {
    let is_missing = |error: &str| error.contains("No such file") && error.contains("cannot open shared object file");
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVIDIA's libraries may be initialised at any time, from any thread.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    // The loader's words where the file is there but cannot be loaded, or lacks a library of its own.
    let name = path.to_string_lossy().into_owned();
    let said = |error: String| match is_missing(&error) && error.contains(&format!("{name}: cannot open")) {
        true => name.clone(),
        false => format!("{name} ({error})"),
    };
    std::mem::forget(library.map_err(|error| said(error.to_string()))?);
    Ok(())
}

impl Wanted {
    fn find(&self) -> Library {
        let mut library = Library { name: self.name, found: None, version: None, searched: Vec::new() };
        for name in self.names {
            match load(name.as_ref()) {
                Ok(()) => {
                    library.found = Some(loaded_path(name).unwrap_or_else(|| name.into()));
                    return library;
                }
                Err(tried) => library.searched.push(tried),
            }
        }
        for folder in folders() {
            library.searched.push(folder.display().to_string());
            for name in self.names {
                let path = folder.join(name);
                if !path.exists() {
                    continue;
                }
                if self.name == "libnvrtc" {
                    // The compiler opens this one by name, and fails without it.
                    entries(&folder, "libnvrtc-builtins.so").iter().for_each(|path| drop(load(path.as_os_str())));
                }
                match load(path.as_os_str()) {
                    Ok(()) => {
                        library.found = Some(path);
                        return library;
                    }
                    Err(tried) => library.searched.push(tried),
                }
            }
        }
        library
    }
}

/// The file that the loader took for a name.
fn loaded_path(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let stem = name.split(".so").next()?;
    let wanted = format!("/{stem}.so");
    maps.lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .find(|path| path.contains(&wanted))
        .map(Into::into)
}

fn version_of(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

fn driver_version() -> Option<i32> {
    let mut version = 0;
    // SAFETY: the driver is loaded, and the pointer is valid.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok().map(|()| version)
}

fn nvrtc_version() -> Option<String> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: libnvrtc is loaded, and the pointers are valid.
    unsafe { cudarc::nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().ok()?;
    Some(format!("{major}.{minor}"))
}

fn cublaslt_version() -> Option<String> {
    // SAFETY: libcublasLt is loaded.
    let version = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
    Some(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
}

/// Facts of the device `ordinal`; the driver must be initialised.
pub(crate) fn facts(ordinal: i32) -> Result<DeviceFacts, DeviceError> {
    let failed = |error| DeviceError::driver("asking for the device", error);
    let device = driver::device::get(ordinal).map_err(failed)?;
    // SAFETY: `device` was returned by the driver.
    let attribute = |attribute| unsafe { driver::device::get_attribute(device, attribute) }.map_err(failed);
    Ok(DeviceFacts {
        name: driver::device::get_name(device).map_err(failed)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        memory_bytes: unsafe { driver::device::total_mem(device) }.map_err(failed)? as u64,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        driver_version: driver_version().map_or_else(|| "unknown".to_owned(), version_of),
    })
}

fn devices() -> Result<Vec<DeviceFacts>, String> {
    let failed = |error| DeviceError::driver("initialising", error).to_string();
    driver::init().map_err(failed)?;
    let count = driver::device::get_count().map_err(failed)?;
    (0..count).map(|ordinal| facts(ordinal).map_err(|error| error.to_string())).collect()
}

/// The major number of a version.
fn major(version: Option<&String>) -> Option<u32> {
    version?.split('.').next()?.parse().ok()
}

/// A library of a later CUDA than the driver speaks, which it could not run.
fn newer_than_driver(libraries: &[Library]) -> Option<String> {
    let [driver, others @ ..] = libraries else { return None };
    let spoken = major(driver.version.as_ref())?;
    let newer = others.iter().find(|library| major(library.version.as_ref()).is_some_and(|major| major > spoken))?;
    let (version, own) = (newer.version.as_deref().unwrap_or_default(), driver.version.as_deref().unwrap_or_default());
    Some(format!(
        "{} {version} needs a driver of its CUDA version, and the driver speaks {own}; update it, or install \
         nvidia-cuda-nvrtc-cu{spoken} and nvidia-cublas-cu{spoken}",
        newer.name
    ))
}

/// What this machine has. The search is done once a process.
pub fn survey() -> &'static Survey {
    static SURVEY: OnceLock<Survey> = OnceLock::new();
    SURVEY.get_or_init(|| {
        let mut libraries: Vec<Library> = WANTED.iter().map(Wanted::find).collect();
        let is_found = |libraries: &[Library], at: usize| libraries[at].found.is_some();
        let (has_driver, has_nvrtc, has_products) =
            (is_found(&libraries, 0), is_found(&libraries, 1), is_found(&libraries, 2));
        let mut problem = None;
        let mut found = Vec::new();
        if has_driver {
            libraries[0].version = driver_version().map(version_of);
            match devices() {
                Ok(devices) => found = devices,
                Err(error) => problem = Some(error),
            }
        }
        if has_nvrtc {
            libraries[1].version = nvrtc_version();
        }
        if has_products {
            libraries[2].version = cublaslt_version();
        }
        let missing = libraries.iter().zip(&WANTED).find(|(library, _)| library.found.is_none());
        let problem = match missing {
            Some((_, wanted)) if wanted.name == "libcuda" => {
                Some("no NVIDIA driver (libcuda.so.1 not found)".to_owned())
            }
            Some((library, wanted)) => {
                // The loader said more of a file that is there.
                let damaged = library.searched.iter().find(|tried| tried.ends_with(')'));
                let why = damaged.map_or_else(|| "not found".to_owned(), |tried| format!("cannot be loaded: {tried}"));
                Some(format!("{} {why}; {}", wanted.name, wanted.remedy))
            }
            None => problem.or_else(|| newer_than_driver(&libraries)).or_else(|| match found.first() {
                None => Some("the driver knows no GPU".to_owned()),
                Some(gpu) if gpu.compute_capability < OLDEST => {
                    let (major, minor) = gpu.compute_capability;
                    Some(format!("{} has compute capability {major}.{minor}, 8.0 is needed", gpu.name))
                }
                Some(_) => None,
            }),
        };
        Survey { libraries, devices: found, problem }
    })
}

/// The version of libnvrtc, for the key of cached kernels.
pub(crate) fn compiler_version() -> String {
    survey().libraries.iter().find(|l| l.name == "libnvrtc").and_then(|l| l.version.clone()).unwrap_or_default()
}

/// A string for a C interface; none if it holds a zero byte.
pub(crate) fn c_string(text: &str) -> Result<CString, DeviceError> {
    CString::new(text).map_err(|_| DeviceError::Missing(format!("a name with a zero byte: {text:?}")))
}
