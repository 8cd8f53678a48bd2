//! A configuration with its opened data, networks and loaders: what `check`, `train`, evaluations and pictures have in
//! common.

use std::sync::OnceLock;

use mlomae_dataflow::config::Config;
use mlomae_dataflow::counts::Outer;
use mlomae_dataflow::flow::topology::Topology;
use mlomae_dataflow::input::augment::Normalisation;
use mlomae_dataflow::method::Method;
use mlomae_dataflow::method::batch::ImageBatch;
use mlomae_dataflow::record::Level;
use mlomae_dataflow::run::data::RunData;
use mlomae_dataflow::run::pipeline::topology;
use mlomae_dataflow::run::sink::{Latest, StaticState};
use mlomae_dataflow::stages::load::LoadStage;
use mlomae_model::lane::Chosen;
use mlomae_storage::dataset::Split;
use mlomae_storage::exit_code::ExitCode;

use crate::process::error::CliError;
use crate::train::continuity::DataContent;
use crate::train::data_place;

/// A configuration and everything that follows from it and its data; of weights it knows only the shapes.
pub struct Experiment {
    /// The configuration.
    pub config: Config,
    /// The data.
    pub data: RunData,
    /// The method with its networks.
    pub method: Method,
    /// A loader of the train split, for its [`samples`](LoadStage::samples).
    pub load_train: LoadStage,
    /// The same of the split that judges. None if there is none.
    pub load_test: Option<LoadStage>,
    content: OnceLock<DataContent>,
}

impl std::fmt::Debug for Experiment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Experiment").field("data", &self.data).finish_non_exhaustive()
    }
}

impl Experiment {
    /// Opens the data and builds the networks. The normalisation is `normalisation`, else the
    /// configuration's, else measured over the pretrain role.
    ///
    /// # Errors
    /// If the data cannot be opened or read, or does not fit the configuration.
    pub fn new(config: Config, normalisation: Option<Normalisation>) -> Result<Self, CliError> {
        // What is missing on this machine is said before data are read.
        config.engine.choose()?;
        let data = RunData::open(&config, normalisation)?;
        for warning in &data.test_role.warnings {
            tracing::warn!(kind = "test_split", "{warning}");
        }
        for note in data.notes() {
            tracing::warn!(kind = "data_skipped", "{note}");
        }
        let method = data.method(&config)?;
        let loader = |dataset| data.loader(&config, dataset, &method);
        let load_train = loader(&data.train)?;
        let load_test = data.test.as_ref().map(loader).transpose()?;
        Ok(Self { config, data, method, load_train, load_test, content: OnceLock::new() })
    }

    /// Says on a line which device this computes on and why, where there is something to say of it.
    pub fn tell_engine(&self) {
        tell_engine(&self.method.engine);
    }

    /// The pipeline's topology.
    ///
    /// # Errors
    /// Never for a checked configuration.
    pub fn topology(&self) -> Result<Topology, CliError> {
        topology(&self.method, &self.config.actors, self.load_train.plan().batch_sizes())
            .map_err(|error| CliError::new(ExitCode::Internal, format!("topology: {error}")))
    }

    /// What of a checkpoint's state stays the same over the run.
    ///
    /// # Errors
    /// Never for a resolved configuration.
    pub fn static_state(&self) -> Result<StaticState, CliError> {
        let info = self.data.train.info();
        let model = &self.method.model.config;
        let normalisation = &self.data.normalisation;
        let state = serde_json::json!({
            "seed": self.config.seed,
            "config": config_toml(&self.config)?,
            "model": model,
            "normalisation": { "mean": normalisation.mean, "std": normalisation.std },
            "data": { "name": info.name, "num_samples": info.num_samples },
            "data_fingerprint": self.fingerprint(),
            "data_content": self.content()?,
            "class_names": info.class_names,
        });
        match state {
            serde_json::Value::Object(state) => Ok(state),
            _ => Ok(StaticState::new()),
        }
    }

    /// The newest numbers of a run that starts after `outer` outer iterations.
    #[must_use]
    pub fn latest(&self, outer: Outer) -> Latest {
        let moment = self.method.moment(outer.first_step(self.method.unroll), Level::Pretrain);
        Latest::starting(moment.step, moment.epoch)
    }

    /// Makes the paths of the configuration absolute, as a run keeps them. Until then they are as they were given, as
    /// messages about the data name them.
    ///
    /// # Errors
    /// As [`content`](Self::content), which sees the paths as they were given.
    pub fn anchor(&mut self) -> Result<(), CliError> {
        self.content()?;
        data_place::anchor(&mut self.config);
        Ok(())
    }

    /// What the splits hold, read once.
    ///
    /// # Errors
    /// If a label cannot be read or a file is gone.
    pub fn content(&self) -> Result<&DataContent, CliError> {
        if let Some(content) = self.content.get() {
            return Ok(content);
        }
        let content = DataContent::of(&self.config, self.data.train.as_ref(), self.data.test.as_deref())?;
        Ok(self.content.get_or_init(|| content))
    }

    /// A hash of which sample has which role, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", self.data.roles.fingerprint())
    }

    /// The loader of the train split, or of the one that judges.
    ///
    /// # Errors
    /// If none judges.
    pub fn loader(&self, split: Split) -> Result<&LoadStage, CliError> {
        match split {
            Split::Train => Ok(&self.load_train),
            Split::Test | Split::Validation => self.load_test.as_ref().ok_or_else(|| {
                let (name, reason) = (&self.data.train.info().name, &self.data.test_role.text);
                let line = format!(
                    "data: no images of {name} can judge, {reason}; \
                     data.test_split chooses: auto, test, validation, none"
                );
                CliError::new(ExitCode::NoInput, line)
            }),
        }
    }

    /// The name of the split that judges.
    #[must_use]
    pub fn judging_split(&self) -> String {
        self.data.test.as_ref().map_or_else(|| "test".to_owned(), |test| test.info().split.clone())
    }

    /// The samples `indices` of a split as the networks see them, without augmentation.
    ///
    /// # Errors
    /// If a sample cannot be read.
    pub fn samples(&self, split: Split, indices: &[usize]) -> Result<ImageBatch, CliError> {
        Ok(self.loader(split)?.samples(indices)?)
    }
}

/// Says on a line which device was chosen and why, where there is something to say of it.
pub fn tell_engine(chosen: &Chosen) {
    if !(chosen.description.is_empty() && chosen.why.is_empty()) {
        tracing::info!(kind = "engine", engine = chosen.device.name(), "{chosen}");
    }
}

/// The whole configuration as TOML.
///
/// # Errors
/// Never for a resolved configuration.
pub fn config_toml(config: &Config) -> Result<String, CliError> {
    config
        .to_toml()
        .map_err(|error| CliError::new(ExitCode::Internal, format!("configuration has no TOML form: {error}")))
}
