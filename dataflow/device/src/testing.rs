//! An emulated GPU for tests: a driver, cuBLASLt and NVRTC for CPUs, built by g++ from `tests/gpu/fake` and from the
//! same kernels that a GPU runs.
//!
//! Tests of this crate call [`gpu`] or [`schedules`]. Tests of the program run it with `LD_LIBRARY_PATH` set to the
//! folder of [`libraries`]. What the emulation can be asked for (too little memory, a lost device, …) is in
//! `tests/gpu/fake/settings.h`. With `MLOMAE_TEST_GPU=real` tests run on the GPU of the machine instead.

mod build;

#[cfg(test)]
use std::{cell::RefCell, collections::BTreeSet};

use std::ffi::{CStr, CString, c_char};
use std::fmt::Debug;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::gpu::Gpu;
use crate::memory::Arg;

pub use build::{build, libraries};

/// The emulated driver, and libraries that are only kept; none on a real GPU.
static LOADED: OnceLock<Option<[Library; 3]>> = OnceLock::new();

/// Loads the emulated libraries, so that requests for the names of NVIDIA's find them: their `SONAME`s are these names.
fn loaded() -> Option<&'static Library> {
    let libraries = LOADED.get_or_init(|| {
        if std::env::var_os("MLOMAE_TEST_GPU").is_some_and(|which| which == "real") {
            return None;
        }
        let folder = libraries().unwrap_or_else(|error| panic!("the emulated GPU cannot be built: {error}"));
        Some(["libcuda.so", "libcublasLt.so", "libnvrtc.so"].map(|name| {
            // SAFETY: the libraries are ours, and do nothing when they are loaded.
            unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_LOCAL) }
                .unwrap_or_else(|error| panic!("{name} of the emulated GPU: {error:?}"))
        }))
    });
    libraries.as_ref().map(|[driver, ..]| driver)
}

/// The device that tests share.
///
/// # Panics
/// If the emulated GPU cannot be built; the message says why.
#[must_use]
pub fn gpu() -> Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        loaded();
        Gpu::open().unwrap_or_else(|error| panic!("the GPU for tests: {error}"))
    })
    .clone()
}

/// Runs `work` under three random orders of streams, blocks and threads, and asserts that they give the same.
#[track_caller]
pub fn schedules<T: PartialEq + Debug>(work: impl Fn(&Gpu) -> T) -> T {
    let gpu = gpu();
    let first = work(&gpu);
    for seed in 2..4 {
        seed_orders(seed);
        let next = work(&gpu);
        assert!(next == first, "the order of threads changes the result: {first:?} and {next:?}");
    }
    first
}

/// Seeds the random orders of what runs from now on.
pub fn seed_orders(seed: u64) {
    let Some(driver) = loaded() else { return };
    // SAFETY: the function of the emulated driver has this type.
    unsafe {
        let set = driver.get::<unsafe extern "C" fn(u64)>(b"fake_seed\0").expect("fake_seed");
        set(seed);
    }
}

/// Bytes of the device that are in use, and the most that were.
#[must_use]
pub fn used_bytes() -> Option<[u64; 2]> {
    let driver = loaded()?;
    Some(["fake_used_bytes\0", "fake_peak_bytes\0"].map(|name| {
        // SAFETY: the functions of the emulated driver have this type.
        unsafe {
            let get = driver.get::<unsafe extern "C" fn() -> u64>(name.as_bytes()).expect(name);
            get()
        }
    }))
}

#[cfg(test)]
thread_local! {
    static LAUNCHED: RefCell<BTreeSet<String>> = RefCell::default();
}

/// Names of the kernels that this thread has launched since its last call.
#[cfg(test)]
pub(crate) fn launched() -> BTreeSet<String> {
    LAUNCHED.take()
}

/// Asserts that the arguments of a launch have the kinds that the kernel declares, as far as the emulated driver knows.
#[track_caller]
pub(crate) fn check_arguments(kernel: &str, args: &[Arg]) {
    #[cfg(test)]
    LAUNCHED.with_borrow_mut(|launched| launched.insert(kernel.to_owned()));
    let Some(Some([driver, ..])) = LOADED.get() else { return };
    let name = CString::new(kernel).expect("a name without zero bytes");
    // SAFETY: the function of the emulated driver has this type, and returns a static text or null.
    let declared = unsafe {
        let signature = driver
            .get::<unsafe extern "C" fn(*const c_char) -> *const c_char>(b"fake_kernel_signature\0")
            .expect("fake_kernel_signature");
        let text = signature(name.as_ptr());
        if text.is_null() { None } else { Some(CStr::from_ptr(text)) }
    };
    let declared = declared.unwrap_or_else(|| panic!("there is no kernel {kernel}")).to_str().expect("letters");
    let fits = |arg: &Arg, letter: char| match arg {
        Arg::Pointer(_) => "rw".contains(letter),
        Arg::I32(_) | Arg::U32(_) => "iu".contains(letter),
        Arg::I64(_) => "lU".contains(letter),
        Arg::F32(_) => letter == 'f',
        Arg::F64(_) => letter == 'd',
    };
    let all_fit =
        args.len() == declared.len() && args.iter().zip(declared.chars()).all(|(arg, letter)| fits(arg, letter));
    assert!(all_fit, "kernel {kernel} declares the parameters {declared:?}, but gets {args:?}");
}

#[cfg(test)]
mod tests;
