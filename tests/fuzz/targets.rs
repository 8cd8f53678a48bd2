//! The fuzz targets: every function that reads untrusted bytes. A target gets the bytes of one file, puts it where the
//! reader looks for it, and reads everything. The reader may return an error, but must not panic.
//!
//! The fuzz crate and the test binary `fuzz` share this file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlomae_storage::checkpoint;
use mlomae_storage::dataset::{
    DatasetSpec, DecodeLimits, Decoder, Sample, Split, Target, TargetInfo, TargetKind, open,
};
use mlomae_storage::logs::{Table, repair, tail, truncate_after};
use tempfile::TempDir;

/// A function that reads the bytes of a file; true if nothing in them was refused.
pub type FuzzTarget = fn(&[u8]) -> bool;

/// All targets with the names of their corpora.
pub const TARGETS: [(&str, FuzzTarget); 19] = [
    ("hf_parquet", hf_parquet),
    ("hf_targets", hf_targets),
    ("cifar10_bin", cifar10_bin),
    ("cifar100_bin", cifar100_bin),
    ("cifar10_pickle", cifar10_pickle),
    ("cifar100_pickle", cifar100_pickle),
    ("cifar_pickle_meta", cifar_pickle_meta),
    ("idx_images", idx_images),
    ("idx_labels", idx_labels),
    ("png_jpeg", encoded_image),
    ("webp_bmp_tiff_gif", encoded_image),
    ("image_folder", image_folder),
    ("mask_png", mask_png),
    ("voc_xml", voc_xml),
    ("coco_json", coco_json),
    ("checkpoint_state", checkpoint_state),
    ("checkpoint_tensors", checkpoint_tensors),
    ("log_stream", log_stream),
    ("log_part", log_part),
];

/// Bounds that keep a hostile image from taking the fuzzer's time; they are refused as in the program.
const LIMITS: DecodeLimits = DecodeLimits { max_pixels: 1 << 16, max_bytes: 1 << 20 };

/// Samples at most that are read of a dataset.
const NUM_SAMPLES: usize = 32;

thread_local! {
    static FOLDERS: RefCell<BTreeMap<&'static str, TempDir>> = const { RefCell::new(BTreeMap::new()) };
}

/// This thread's folder of a target, filled by `fill` at its first use: in a memory file system (tmpfs) if there is
/// one.
fn folder(name: &'static str, fill: impl FnOnce(&Path)) -> PathBuf {
    FOLDERS.with_borrow_mut(|folders| {
        let folder = folders.entry(name).or_insert_with(|| {
            let memory = Path::new("/dev/shm");
            let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
            let folder = folder.expect("temporary folder");
            fill(folder.path());
            folder
        });
        folder.path().to_owned()
    })
}

fn fixture(name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = if package.ends_with("fuzz") { package.parent().expect("tests") } else { package };
    tests.join("fixtures/readers").join(name)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let path = entry.expect("entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("written");
}

/// Opens a dataset and reads samples and labels from both its ends.
fn read_dataset(path: &Path, format: &str, label_column: Option<&str>) -> bool {
    let label_column = label_column.map(str::to_owned);
    let spec = DatasetSpec::new(format.parse().expect("a format"), Some(path.to_owned()), Split::Train);
    read_all(&DatasetSpec { limits: LIMITS, label_column, ..spec })
}

/// The same with other targets than the class.
fn read_targets(path: &Path, format: &str, targets: &[TargetKind]) -> bool {
    let spec = DatasetSpec::new(format.parse().expect("a format"), Some(path.to_owned()), Split::Train);
    read_all(&DatasetSpec { limits: LIMITS, targets: targets.to_vec(), ..spec })
}

/// Targets must fit their image and what the dataset says of them.
fn check_targets(sample: &Sample, infos: &[TargetInfo]) {
    let image = &sample.image;
    assert_eq!(sample.targets.len(), infos.len());
    for (target, info) in sample.targets.iter().zip(infos) {
        let num = info.names.len();
        match target {
            Target::Unknown => {}
            Target::Class(class) => assert!((*class as usize) < num),
            Target::Labels(labels) => assert_eq!(labels.len(), num),
            Target::Values(values) => assert_eq!(values.len(), num),
            Target::Map(map) => {
                assert_eq!(
                    (map.width, map.height, map.classes.len()),
                    (image.width, image.height, image.width * image.height)
                );
                assert!(map.classes.iter().all(|class| *class == u16::MAX || usize::from(*class) < num));
            }
            Target::Boxes(boxes) => {
                for object in boxes {
                    let [left, top, right, bottom] = object.edges;
                    assert!(0.0 <= left && left < right && right <= image.width as f32, "{object:?}");
                    assert!(0.0 <= top && top < bottom && bottom <= image.height as f32, "{object:?}");
                    assert!((object.class as usize) < num, "{object:?}");
                }
            }
        }
    }
}

fn read_all(spec: &DatasetSpec) -> bool {
    let Ok(dataset) = open(spec) else { return false };
    let infos = dataset.targets_info();
    let mut is_whole = true;
    let last = dataset.len().saturating_sub(NUM_SAMPLES / 2).max(NUM_SAMPLES / 2);
    for index in (0..dataset.len().min(NUM_SAMPLES / 2)).chain(last..dataset.len()) {
        let label = dataset.label(index);
        let sample = dataset.sample(index);
        is_whole &= sample.is_ok();
        if let Ok(sample) = sample {
            let image = &sample.image;
            check_targets(&sample, &infos);
            assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
            assert_eq!(image.channels, dataset.info().channels);
            assert_eq!(label.expect("a label"), sample.label);
            let num_classes = dataset.info().class_names.len();
            assert!(sample.label.is_none_or(|label| (label as usize) < num_classes), "{:?}", sample.label);
        }
    }
    is_whole
}

/// Puts the bytes in the place of one file of a fixture and reads the dataset.
fn damage(target: &'static str, of: &str, file: &str, format: &str, bytes: &[u8]) -> bool {
    let folder = folder(target, |folder| copy(&fixture(of), folder));
    write(&folder.join(file), bytes);
    read_dataset(&folder, format, None)
}

fn hf_parquet(bytes: &[u8]) -> bool {
    let is_whole = damage("hf_parquet", "hf-plain", "train.parquet", "hf-parquet", bytes);
    let folder = folder("hf_parquet", |_| {});
    // One of the seeds has two label columns.
    is_whole || read_dataset(&folder, "hf-parquet", Some("fine_label"))
}

fn cifar10_bin(bytes: &[u8]) -> bool {
    damage("cifar10_bin", "cifar10-bin", "data_batch_1.bin", "cifar-bin", bytes)
}

fn cifar100_bin(bytes: &[u8]) -> bool {
    damage("cifar100_bin", "cifar100-bin", "train.bin", "cifar-bin", bytes)
}

fn cifar10_pickle(bytes: &[u8]) -> bool {
    damage("cifar10_pickle", "cifar10-py2/cifar-10-batches-py", "data_batch_1", "cifar-pickle", bytes)
}

fn cifar100_pickle(bytes: &[u8]) -> bool {
    damage("cifar100_pickle", "cifar100-protocol4/cifar-100-python", "train", "cifar-pickle", bytes)
}

fn cifar_pickle_meta(bytes: &[u8]) -> bool {
    damage("cifar_pickle_meta", "cifar10-py3/cifar-10-batches-py", "batches.meta", "cifar-pickle", bytes)
}

/// Plain or gzipped, whatever its name says.
fn idx_images(bytes: &[u8]) -> bool {
    let plain = damage("idx_images", "idx-plain", "train-images-idx3-ubyte", "idx", bytes);
    damage("idx_images_gz", "idx-gz", "train-images-idx3-ubyte.gz", "idx", bytes) || plain
}

fn idx_labels(bytes: &[u8]) -> bool {
    let plain = damage("idx_labels", "idx-plain", "train-labels-idx1-ubyte", "idx", bytes);
    damage("idx_labels_gz", "idx-gz", "train-labels-idx1-ubyte.gz", "idx", bytes) || plain
}

/// One image of any format; the corpora begin with different ones.
fn encoded_image(bytes: &[u8]) -> bool {
    let header = Decoder::new(LIMITS).header(bytes);
    let image = Decoder::new(LIMITS).decode(bytes);
    if let Ok(image) = &image {
        assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
        assert!(image.width * image.height <= LIMITS.max_pixels);
        let header = header.expect("what can be decoded has a header");
        assert_eq!((header.width, header.height), (image.width, image.height));
        assert_eq!(header.channels, image.channels);
    }
    image.is_ok()
}

fn image_folder(bytes: &[u8]) -> bool {
    let folder = folder("image_folder", |folder| {
        for class in ["one", "two"] {
            fs::create_dir_all(folder.join("train").join(class)).expect("folder");
            fs::copy(fixture("images/rgb.png"), folder.join("train").join(class).join("0.png")).expect("copied");
        }
    });
    write(&folder.join("train/two/1.jpg"), bytes);
    read_dataset(&folder, "image-folder", None)
}

/// Columns of targets of every kind.
fn hf_targets(bytes: &[u8]) -> bool {
    let folder = folder("hf_targets", |_| {});
    write(&folder.join("train.parquet"), bytes);
    read_targets(&folder, "hf-parquet", &[TargetKind::Labels, TargetKind::Values, TargetKind::Map, TargetKind::Boxes])
}

/// A folder below `folder` with one image.
fn with_image(folder: &Path, path: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    fs::copy(fixture("images/rgb.png"), path).expect("copied");
}

fn mask_png(bytes: &[u8]) -> bool {
    let folder = folder("mask_png", |folder| {
        with_image(folder, "images/train/0.png");
        fs::create_dir_all(folder.join("masks/train")).expect("folder");
    });
    write(&folder.join("masks/train/0.png"), bytes);
    read_targets(&folder, "mask-folder", &[TargetKind::Map])
}

fn voc_xml(bytes: &[u8]) -> bool {
    let folder = folder("voc_xml", |folder| {
        with_image(folder, "JPEGImages/0.png");
        fs::create_dir_all(folder.join("Annotations")).expect("folder");
    });
    write(&folder.join("Annotations/0.xml"), bytes);
    read_targets(&folder, "voc", &[TargetKind::Boxes, TargetKind::Labels])
}

fn coco_json(bytes: &[u8]) -> bool {
    let folder = folder("coco_json", |folder| {
        with_image(folder, "train/a.png");
        fs::create_dir_all(folder.join("annotations")).expect("folder");
    });
    write(&folder.join("annotations/instances_train.json"), bytes);
    read_targets(&folder, "coco", &[TargetKind::Boxes, TargetKind::Labels])
}

/// Reads a checkpoint with the bytes in the place of one of its files.
fn load_checkpoint(target: &'static str, file: &str, bytes: &[u8]) -> bool {
    let folder = folder(target, |folder| copy(&fixture("../checkpoint"), folder));
    write(&folder.join(file), bytes);
    if file != "state.json" {
        let state = fs::read_to_string(fixture("../checkpoint/state.json")).expect("a state");
        write(&folder.join("state.json"), signed(&state, file, bytes).as_bytes());
    }
    checkpoint::load(&folder).is_ok()
}

/// The state of a checkpoint with correct checksums of another file and of itself, so that the fuzzer gets past the
/// checks to the reader.
fn signed(state: &str, file: &str, bytes: &[u8]) -> String {
    let mut state: serde_json::Value = serde_json::from_str(state).expect("JSON");
    state.as_object_mut().expect("object").remove("crc32");
    state["files"][file] = serde_json::json!({ "bytes": bytes.len(), "crc32": format!("{:08x}", crc32(bytes)) });
    sign(&state.to_string())
}

/// A JSON object whose first line has the checksum of all that follows it.
fn sign(object: &str) -> String {
    let rest = object.trim_start_matches('{');
    format!("{{\"crc32\":\"{:08x}\",\n{rest}", crc32(rest.as_bytes()))
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let shift = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        (0..8).fold(crc ^ u32::from(*byte), shift)
    })
}

/// Reads it as it is, and again with a corrected checksum.
fn checkpoint_state(bytes: &[u8]) -> bool {
    let is_whole = load_checkpoint("checkpoint_state", "state.json", bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some((_, rest)) = text.split_once('\n')
    {
        load_checkpoint("checkpoint_state", "state.json", sign(rest).as_bytes());
    }
    is_whole
}

fn checkpoint_tensors(bytes: &[u8]) -> bool {
    let is_whole = load_checkpoint("checkpoint_tensors", "mask.safetensors", bytes);
    let folder = folder("checkpoint_tensors", |_| {});
    checkpoint::read_safetensors(&folder.join("mask.safetensors")).is_ok() && is_whole
}

/// Reads, repairs and reads a run directory of which nothing is left but one file of its logs.
fn read_logs(target: &'static str, file: &str, bytes: &[u8]) -> bool {
    let run = folder(target, |_| {});
    let path = run.join(file);
    let _ = fs::remove_dir_all(run.join("logs"));
    fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    write(&path, bytes);
    let before = tail(&run, Table::Metrics, 5);
    let Ok(report) = repair(&run) else { return false };
    // A second repair has nothing to do.
    assert_eq!(repair(&run).expect("repaired").num_rows(), 0);
    let after = tail(&run, Table::Metrics, 5);
    let _ = truncate_after(&run, 2);
    before.is_ok_and(|before| !before.is_empty() && after.is_ok()) && report.lost_bytes() == 0
}

fn log_stream(bytes: &[u8]) -> bool {
    read_logs("log_stream", "logs/live/metrics-000000.arrows", bytes)
}

/// A sealed part with any bytes.
fn log_part(bytes: &[u8]) -> bool {
    read_logs("log_part", "logs/metrics/part-000000.parquet", bytes)
}

/// Runs the target of a name; true if nothing in the bytes was refused.
///
/// # Panics
/// If there is none, or if it found something.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.0 == name);
    target.unwrap_or_else(|| panic!("no target: {name}")).1(bytes)
}
