//! The kernels' binary image: compiled by NVRTC for the device found, and cached on disk.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::result as nvrtc;
use cudarc::nvrtc::sys;

use crate::error::DeviceError;
use crate::libraries::{c_string, compiler_version};

/// The files of one translation unit, in order. They include nothing: no toolkit is needed to compile them.
pub const SOURCES: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../kernels/common.cuh")),
    ("mma.cuh", include_str!("../kernels/mma.cuh")),
    ("norm.cu", include_str!("../kernels/norm.cu")),
    ("activation.cu", include_str!("../kernels/activation.cu")),
    ("vectors.cu", include_str!("../kernels/vectors.cu")),
    ("tokens.cu", include_str!("../kernels/tokens.cu")),
    ("patches.cu", include_str!("../kernels/patches.cu")),
    ("images.cu", include_str!("../kernels/images.cu")),
    ("order.cu", include_str!("../kernels/order.cu")),
    ("masking.cu", include_str!("../kernels/masking.cu")),
    ("head.cu", include_str!("../kernels/head.cu")),
    ("attention.cu", include_str!("../kernels/attention.cu")),
    ("attention_mma.cu", include_str!("../kernels/attention_mma.cu")),
    ("attention_mma_grad.cu", include_str!("../kernels/attention_mma_grad.cu")),
    ("attention_mma_tangent.cu", include_str!("../kernels/attention_mma_tangent.cu")),
    ("attention_grad.cu", include_str!("../kernels/attention_grad.cu")),
    ("attention_tangent.cu", include_str!("../kernels/attention_tangent.cu")),
];

/// The kernels as one text.
#[must_use]
pub fn source() -> String {
    SOURCES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

/// Options of the compiler besides the architecture.
pub const OPTIONS: &[&str] = &["--std=c++17"];

/// Folder of cached images: `$MLOMAE_KERNEL_CACHE`, or `mlomae/kernels` in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("MLOMAE_KERNEL_CACHE").or_else(|| {
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("mlomae/kernels"))
    })
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// A cached image, if its checksum, the last eight bytes of the file, fits.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let mut image = std::fs::read(path).ok()?;
    let sum = image.split_off(image.len().checked_sub(8)?);
    (sum == hash(&[&image]).to_le_bytes()).then_some(image)
}

/// Writes beside, then renames: readers see all of it or nothing. A cache that cannot be written is none.
fn write_cached(path: &Path, image: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let bytes = [image, &hash(&[image]).to_le_bytes()].concat();
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&beside, bytes))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        drop(std::fs::remove_file(&beside));
    }
}

/// The compiler's name of a compute capability. An image is for one device, so it may use all that Hopper has.
fn architecture((major, minor): (i32, i32)) -> String {
    let accelerated = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{accelerated}")
}

/// The image for compute capability `(major, minor)`, from the cache or compiled.
///
/// # Errors
/// When the kernels do not compile.
pub(crate) fn image(capability: (i32, i32)) -> Result<Vec<u8>, DeviceError> {
    let arch = architecture(capability);
    let source = source();
    let key = hash(&[source.as_bytes(), arch.as_bytes(), compiler_version().as_bytes(), OPTIONS.concat().as_bytes()]);
    let path = cache_folder().map(|folder| folder.join(format!("{key:016x}.{arch}.cubin")));
    if let Some(image) = path.as_deref().and_then(read_cached) {
        return Ok(image);
    }
    let image = compile(&source, &arch)?;
    if let Some(path) = path {
        write_cached(&path, &image);
    }
    Ok(image)
}

fn compile(source: &str, arch: &str) -> Result<Vec<u8>, DeviceError> {
    let failed = |cause: String| DeviceError::Compile { arch: arch.to_owned(), cause };
    let text = c_string(source)?;
    let program = nvrtc::create_program(&text, Some(c"mlomae.cu")).map_err(|error| failed(error.to_string()))?;
    let mut options: Vec<String> = OPTIONS.iter().map(|&option| option.to_owned()).collect();
    options.push(format!("--gpu-architecture={arch}"));
    // SAFETY: `program` is alive until it is destroyed below.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options).map_err(|error| {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
            let log = String::from_utf8_lossy(&log);
            failed(log.lines().find(|line| line.contains("error")).unwrap_or(&error.to_string()).to_owned())
        });
        let image = compiled.and_then(|()| {
            let failed = |error: nvrtc::NvrtcError| failed(error.to_string());
            let mut size = 0;
            sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(failed)?;
            let mut image = vec![0u8; size];
            sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().map_err(failed)?;
            Ok(image)
        });
        let _ = nvrtc::destroy_program(program);
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_image_is_whole_or_none() {
        let folder = std::env::temp_dir().join(format!("mlomae-image-{}", std::process::id()));
        let path = folder.join("a.cubin");
        assert_eq!(read_cached(&path), None);
        write_cached(&path, b"image");
        assert_eq!(read_cached(&path).as_deref(), Some(&b"image"[..]));
        let mut bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read_cached(&path), None, "byte {at} was changed");
            bytes[at] ^= 1;
        }
        std::fs::write(&path, &bytes[..5]).unwrap();
        assert_eq!(read_cached(&path), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
