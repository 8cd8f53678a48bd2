//! Where a run's data lie: paths are kept absolute, so that a run can be taken up from any folder, and found again
//! when run and data were moved together.

use std::path::{Component, Path, PathBuf};

use mlomae_dataflow::config::Config;
use mlomae_storage::exit_code::ExitCode;

use crate::process::error::CliError;

/// Makes the paths of a configuration absolute: those that were given in this process are meant relative to the current
/// folder. A path that has no form in the configuration's text, which is UTF-8, stays as it is.
pub fn anchor(config: &mut Config) {
    if let Some(path) = config.data.path.as_ref().filter(|path| path.exists()).and_then(|path| absolute(path)) {
        config.data.path = Some(path);
    }
    if let Some(root) = absolute(Path::new(&config.run.root)).and_then(|root| root.to_str().map(str::to_owned)) {
        config.run.root = root;
    }
}

/// The path as it is found from any folder; none if that is no UTF-8. Links are not followed, since their owner may
/// turn them, unless a `..` may lead out of one.
#[must_use]
pub fn absolute(path: &Path) -> Option<PathBuf> {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    let absolute = if goes_up { path.canonicalize() } else { std::path::absolute(path) };
    absolute.ok().filter(|path| path.to_str().is_some())
}

/// Finds the data that a run's own configuration `config` names, although the run, or it and its data, may have been
/// moved since; `run` is where the run is now.
///
/// # Errors
/// If they are nowhere, with the way out.
pub fn find(config: &mut Config, run: Option<&Path>) -> Result<(), CliError> {
    let Some(recorded) = config.data.path.clone() else {
        return Ok(());
    };
    let root = PathBuf::from(&config.run.root);
    let run = run.and_then(|run| std::path::absolute(run).ok());
    let moved = run.as_deref().and_then(|run| match (recorded.is_absolute(), root.is_absolute()) {
        (true, true) => Some(normal(&run.join(relative(&root.join(config.run.id.as_deref()?), &recorded)))),
        // As older versions kept it: relative to the folder in which the run was started.
        (false, false) => {
            let mut folder = run.parent()?;
            for part in root.components().rev().filter(|part| *part != Component::CurDir) {
                folder = folder.ends_with(part).then(|| folder.parent())??;
            }
            Some(folder.join(&recorded))
        }
        _ => None,
    });
    let place = if recorded.is_absolute() {
        [Some(recorded.clone()), moved]
    } else {
        [moved, std::path::absolute(&recorded).ok()]
    };
    let Some(place) = place.into_iter().flatten().find(|place| place.exists()) else {
        let line = format!("dataset not found: {}; if it has moved: --set data.path=NEW", recorded.display());
        return Err(CliError::new(ExitCode::NoInput, line));
    };
    if recorded.is_absolute() && place != recorded {
        tracing::warn!(
            kind = "data_moved",
            "the run's data are no longer at {}; those that lie to the run as they did are taken: {}",
            recorded.display(),
            place.display()
        );
    }
    config.data.path = Some(place);
    Ok(())
}

/// The way from the folder `from` to `to`, both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (from, to) = (normal(from), normal(to));
    let num_common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(num_common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(num_common)).collect()
}

/// The path without `.` and `..`, by its text alone.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &str, data: &str) -> Config {
        let mut config = Config::default();
        config.run.root = root.to_owned();
        config.run.id = Some("r".to_owned());
        config.data.path = Some(data.into());
        config
    }

    #[test]
    fn ways_between_folders() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to)).display().to_string();
        assert_eq!(way("/a/runs/r", "/a/data/x"), "../../data/x");
        assert_eq!(way("/a/./runs/../runs/r", "/a/runs/r/own"), "own");
        assert_eq!(way("/a", "/a"), "");
        assert_eq!(normal(Path::new("/a/b/../../../c/./d")), Path::new("/c/d"));
    }

    #[test]
    fn data_are_found_where_they_were_or_where_they_moved_with_the_run() {
        let place = tempfile::tempdir().expect("folder");
        let path = |name: &str| place.path().join(name);
        for folder in ["new/runs/r", "new/data", "other"] {
            std::fs::create_dir_all(path(folder)).expect("folder");
        }
        let text = |name: &str| path(name).display().to_string();
        let found = |mut config: Config, run: &str| {
            find(&mut config, Some(&path(run))).map(|()| config.data.path.expect("a path").display().to_string())
        };
        // The recorded place counts as long as it is there, and then what lies to the run as it did.
        assert_eq!(found(config(&text("old/runs"), &text("other")), "new/runs/r").expect("found"), text("other"));
        assert_eq!(found(config(&text("old/runs"), &text("old/data")), "new/runs/r").expect("found"), text("new/data"));
        // An older version's path is relative to the folder in which the run was started.
        assert_eq!(found(config("runs", "data"), "new/runs/r").expect("found"), text("new/data"));
        assert_eq!(found(config("./runs", "data"), "new/runs/r").expect("found"), text("new/data"));
        let refusal = found(config(&text("old/runs"), &text("old/gone")), "new/runs/r").expect_err("nowhere");
        assert_eq!(refusal.exit_code(), 66);
        let line = format!("dataset not found: {}; if it has moved: --set data.path=NEW", text("old/gone"));
        assert_eq!(refusal.to_string(), line);
    }
}
