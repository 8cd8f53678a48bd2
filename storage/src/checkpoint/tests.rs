//! Checkpoints under kills, full disks and damage.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::safetensors_io::parse;
use super::*;
use crate::atomic::fault;

fn tensor(name: &str, shape: &[usize], seed: f32) -> NamedTensor {
    let len = shape.iter().product();
    NamedTensor { name: name.into(), shape: shape.into(), values: (0..len).map(|i| seed + i as f32 * 0.1).collect() }
}

struct Parts {
    model: Vec<NamedTensor>,
    head: Vec<NamedTensor>,
    mask: Vec<NamedTensor>,
    optimizer: Vec<NamedTensor>,
    state: Value,
}

fn parts(seed: f32) -> Parts {
    Parts {
        model: vec![tensor("patch_embed.proj.weight", &[4, 3, 2, 2], seed), tensor("blocks.0.norm1.bias", &[4], seed)],
        head: vec![tensor("head.weight", &[10, 4], seed), tensor("empty", &[0, 3], 0.0), tensor("scalar", &[], seed)],
        mask: vec![],
        optimizer: vec![tensor("m", &[70_000], seed)],
        state: json!({ "seed": u64::MAX, "lr": 0.1f64 + 0.2, "mean": [0.28604062, 1e-300], "version": seed }),
    }
}

impl Parts {
    fn borrow(&self, keep: usize) -> CheckpointRef<'_> {
        CheckpointRef {
            model: self.model.iter().map(NamedTensor::as_ref).collect(),
            head: self.head.iter().map(NamedTensor::as_ref).collect(),
            mask: self.mask.iter().map(NamedTensor::as_ref).collect(),
            optimizer: self.optimizer.iter().map(NamedTensor::as_ref).collect(),
            state: &self.state,
            keep,
        }
    }

    fn assert_is(&self, loaded: &Checkpoint) {
        assert_eq!(loaded.state, self.state);
        for (a, b) in [
            (&loaded.model, &self.model),
            (&loaded.head, &self.head),
            (&loaded.mask, &self.mask),
            (&loaded.optimizer, &self.optimizer),
        ] {
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(b) {
                assert_eq!((&a.name, &a.shape), (&b.name, &b.shape));
                assert!(a.values.iter().map(|v| v.to_bits()).eq(b.values.iter().map(|v| v.to_bits())), "{}", a.name);
            }
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if kind.is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn every_bit_comes_back() {
    let run = tempfile::tempdir().unwrap();
    let mut saved = parts(1.5);
    let odd = [0x7fc0_1234, 0xffc0_0001, 0x7f80_0001, 0x7f80_0000, 0xff80_0000, 0x8000_0000, 0x0000_0001];
    saved.model.push(NamedTensor {
        name: "odd".into(),
        shape: vec![odd.len()],
        values: odd.iter().map(|b| f32::from_bits(*b)).collect(),
    });
    let dir = save(run.path(), 1200, &saved.borrow(3)).unwrap();
    assert!(dir.ends_with("checkpoints/step-00001200"));
    let checkpoints = run.path().join("checkpoints");
    for path in [run.path(), &dir, &checkpoints, &checkpoints.join("latest")] {
        assert_eq!(resolve(path).unwrap(), fs::canonicalize(&dir).unwrap(), "{}", path.display());
        let loaded = load(path).unwrap();
        saved.assert_is(&loaded);
        assert_eq!((loaded.step, loaded.program_version.as_str()), (1200, env!("CARGO_PKG_VERSION")));
    }
    let (metadata, tensors) = read_safetensors(&dir.join("model.safetensors")).unwrap();
    assert_eq!(metadata.get("format").map(String::as_str), Some("pt"));
    assert_eq!(tensors.len(), 3);
    let json: Value = serde_json::from_slice(&fs::read(dir.join("state.json")).unwrap()).unwrap();
    assert_eq!(json["format_version"], 1);
}

#[test]
fn killed_before_any_operation_there_is_always_a_good_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    // A first, a second, a replaced second, and a third that prunes the first.
    let versions = [(100, parts(1.0)), (200, parts(2.0)), (200, parts(3.0)), (300, parts(4.0))];
    let (copies, saved) = (Rc::new(Cell::new(0usize)), Rc::new(Cell::new(0usize)));
    let marks = Rc::new(std::cell::RefCell::new(Vec::new()));
    let hook = {
        let (run, root, copies, saved, marks) =
            (run.clone(), root.path().to_path_buf(), copies.clone(), saved.clone(), marks.clone());
        move |op: &'static str, path: &Path| {
            if run.exists() {
                copy_dir(&run, &root.join(format!("kill-{}", copies.get())));
                marks.borrow_mut().push((saved.get(), format!("before {op} {}", path.display())));
                copies.set(copies.get() + 1);
            }
            Ok(())
        }
    };
    fault::with(hook, || {
        for (step, version) in &versions {
            save(&run, *step, &version.borrow(2)).unwrap();
            saved.set(saved.get() + 1);
        }
    });
    assert!(copies.get() > 60, "{} operations", copies.get());
    for (n, (saved, what)) in marks.borrow().iter().enumerate() {
        let copy = root.path().join(format!("kill-{n}"));
        match load(&copy) {
            Ok(loaded) => {
                let version = loaded.state["version"].as_f64().unwrap() as usize;
                assert!(version == *saved || version == saved + 1, "{what}: version {version} after {saved} saves");
                versions[version - 1].1.assert_is(&loaded);
            }
            Err(error) => assert!(*saved == 0 && error.exit_code() == 66, "{what}: {error}"),
        }
        // What a resumed run does.
        clean(&copy).unwrap();
        if *saved > 0 {
            let version = load(&copy).unwrap().state["version"].as_f64().unwrap() as usize;
            assert!(version == *saved || version == saved + 1, "{what}, cleaned: version {version}");
        }
        save(&copy, 400, &parts(9.0).borrow(2)).unwrap();
        assert_eq!(load(&copy).unwrap().step, 400);
        let names = crate::atomic::names(&copy.join("checkpoints")).unwrap();
        assert!(names.iter().all(|name| !name.starts_with('.')), "{what}: {names:?}");
        assert!(names.len() <= 3, "{names:?}");
    }
}

#[test]
fn on_a_full_disk_the_previous_checkpoint_stays() {
    let mut failures = 0;
    for n in 0.. {
        let run = tempfile::tempdir().unwrap();
        let (old, new) = (parts(1.0), parts(2.0));
        save(run.path(), 100, &old.borrow(1)).unwrap();
        let result = fault::full_from(n, || save(run.path(), 200, &new.borrow(1)));
        let loaded = load(run.path()).unwrap();
        match result {
            Ok(_) => {
                new.assert_is(&loaded);
                break;
            }
            Err(error) => {
                failures += 1;
                assert_eq!(error.exit_code(), 74);
                let version = loaded.state["version"].as_f64().unwrap();
                if version < 2.0 { old.assert_is(&loaded) } else { new.assert_is(&loaded) }
            }
        }
    }
    assert!(failures > 20, "{failures}");
}

#[test]
fn pruning_keeps_the_newest_and_the_latest() {
    let run = tempfile::tempdir().unwrap();
    for step in [10, 20, 30, 40] {
        save(run.path(), step, &parts(1.0).borrow(2)).unwrap();
    }
    let steps = |run: &Path| list(run).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert_eq!(steps(run.path()), [30, 40]);
    // A run that went back: its own checkpoint is the latest, though not the newest.
    save(run.path(), 25, &parts(1.0).borrow(2)).unwrap();
    assert_eq!(steps(run.path()), [25, 30, 40]);
    assert_eq!(load(run.path()).unwrap().step, 25);
}

#[test]
fn any_damage_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let good = save(root.path(), 1, &parts(1.0).borrow(1)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for name in ["model.safetensors", "head.safetensors", "mask.safetensors", "optimizer.safetensors", "state.json"] {
        let path = good.join(name);
        let bytes = fs::read(&path).unwrap();
        let refused = |what: &str| {
            let error = load(&good).unwrap_err();
            assert!(error.to_string().contains(name), "{what}: {error}");
            error
        };
        for _ in 0..60 {
            fs::write(&path, &bytes[..rng.random_range(0..bytes.len())]).unwrap();
            // Only its last newline may be missing from a state that still parses, and its sum shows that.
            assert_eq!(refused("cut").exit_code(), 65);
            let mut altered = bytes.clone();
            altered[rng.random_range(0..bytes.len())] ^= 1 << rng.random_range(0..7);
            fs::write(&path, &altered).unwrap();
            let error = load(&good);
            assert!(error.is_err_and(|e| e.exit_code() == 65), "altered {name}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(refused("missing").exit_code(), 66);
        fs::write(&path, &bytes).unwrap();
        load(&good).unwrap();
    }
    let state = fs::read_to_string(good.join("state.json")).unwrap();
    fs::write(good.join("state.json"), state.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    let error = load(&good).unwrap_err();
    assert!(error.to_string().ends_with("expected format version 1, got 2"), "{error}");
    assert_eq!(load(Path::new("/nonexistent")).unwrap_err().exit_code(), 66);
}

#[test]
fn what_cannot_be_saved_leaves_nothing() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), 1, &parts(1.0).borrow(1)).unwrap();
    let mut bad = parts(2.0);
    bad.head[0].shape = vec![3];
    let error = save(run.path(), 2, &bad.borrow(1)).unwrap_err();
    assert!(error.to_string().contains("`head.weight` of shape [3] has 40 values"), "{error}");
    let mut bad = parts(2.0);
    bad.model[1].name = bad.model[0].name.clone();
    assert!(save(run.path(), 2, &bad.borrow(1)).is_err());
    let bad = Parts { state: json!([1]), ..parts(2.0) };
    assert!(save(run.path(), 2, &bad.borrow(1)).is_err());
    assert_eq!(crate::atomic::names(&run.path().join("checkpoints")).unwrap(), ["latest", "step-00000001"]);
}

#[test]
fn foreign_safetensors_are_read_or_refused() {
    let path = Path::new("x.safetensors");
    let file = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    };
    let header = [
        r#"{"__metadata__":{"case":"a"},"b":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"#,
        r#""a":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#,
    ]
    .concat();
    let mut data = 2.5f64.to_le_bytes().to_vec();
    data.extend((-7i64).to_le_bytes());
    let bytes = file(&header, &data);
    let (metadata, tensors) = parse(path, &bytes).unwrap();
    assert_eq!(metadata["case"], "a");
    assert_eq!((&tensors[0].data, tensors[0].name.as_str()), (&TensorData::F64(vec![2.5]), "b"), "in file order");
    assert_eq!(tensors[1].data.to_f64(), [-7.0]);
    for cut in 0..bytes.len() {
        let error = parse(path, &bytes[..cut]).unwrap_err();
        assert!(error.to_string().contains("x.safetensors") && error.exit_code() == 65, "{error}");
    }
    let half = file(r#"{"h":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#, &[0, 0]);
    assert!(parse(path, &half).unwrap_err().to_string().contains("tensor `h`: expected F32, F64"));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut altered = bytes.clone();
        for _ in 0..3 {
            let at = rng.random_range(0..altered.len());
            altered[at] = rng.random_range(0..=255);
        }
        refused += usize::from(parse(path, &altered).is_err());
    }
    assert!(refused > 10_000, "{refused}");
    let mut noise = vec![0u8; 200];
    rng.fill_bytes(&mut noise);
    assert!(parse(path, &noise).is_err());
    assert_eq!(read_safetensors(Path::new("/nonexistent")).unwrap_err().exit_code(), 66);
}
