//! The memory that a run will need and whether the machine has it, checked before it is allocated.

use mlomae_dataflow::config::MemoryCheck;
use mlomae_dataflow::flow::stage_name::StageName;
use mlomae_dataflow::flow::topology::EdgeBound;
use mlomae_dataflow::record::statistics::MAX_REMEMBERED;
use mlomae_model::lane::{DeviceMemoryBound, MemorySpec};
use mlomae_model::{Level, ModelConfig, PerLevel};
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::machine_memory::{Available, Limit, available, bytes_text};

use crate::process::error::CliError;
use crate::train::experiment::Experiment;

/// The program, its threads and its buffers, measured.
const PROGRAM_BYTES: u64 = 48 << 20;
/// Address space that the allocator reserves for a thread beside what it uses (an arena of glibc).
const THREAD_ADDRESS_BYTES: u64 = 66 << 20;
/// Beside its patches, a mask that is remembered of a sample takes its place in a table.
const MASK_BYTES: u64 = 64;

/// A part of the memory that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    name: &'static str,
    num_bytes: u64,
    /// The keys that make it smaller.
    keys: &'static str,
}

/// Memory that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// What is taken already.
    held: Part,
    /// What will be.
    parts: Vec<Part>,
    num_threads: usize,
    /// Of a device with a memory of its own: its name, and what is taken there.
    device: Option<(&'static str, DeviceMemoryBound)>,
}

impl Needs {
    /// What a training takes, of which the data is held already.
    ///
    /// # Errors
    /// Never for a checked configuration.
    pub fn of_training(experiment: &Experiment) -> Result<Self, CliError> {
        let config = &experiment.config;
        let mut parts = vec![
            Part {
                name: "weights, gradients and moments",
                num_bytes: weight_bytes(experiment),
                keys: "model.dim, model.depth, mask.hidden, pipeline.lag",
            },
            Part {
                name: ACTIVATIONS,
                num_bytes: activation_bytes(experiment),
                keys: "pretrain.batch, finetune.batch, policy.batch, model.patch, model.depth",
            },
            Part {
                name: "queues",
                num_bytes: queue_bytes(experiment)?,
                keys: "actors.STAGE.queue_cap, model.dim, mask.hidden",
            },
            Part {
                name: "masks of all samples",
                num_bytes: mask_bytes(experiment),
                keys: "data.max_samples, model.patch",
            },
            PROGRAM,
        ];
        if config.eval.at_end {
            let evaluation = evaluation_bytes(experiment);
            // Judged after training, in the memory that it leaves.
            let training: u64 = sum(&parts);
            let rest = evaluation.num_bytes.saturating_sub(training);
            parts.push(Part { num_bytes: rest, ..evaluation });
        }
        let device = device_bound(experiment);
        if device.is_some() {
            // They are in the device's memory.
            parts.retain(|part| part.name != ACTIVATIONS);
        }
        Ok(Self { held: held(experiment), parts, num_threads: num_threads(experiment), device })
    }

    /// What judging an encoder takes.
    #[must_use]
    pub fn of_evaluation(experiment: &Experiment) -> Self {
        let parts = vec![theta(experiment), evaluation_bytes(experiment), PROGRAM];
        Self { held: held(experiment), parts, num_threads: num_threads(experiment), device: None }
    }

    /// What a forward pass of the whole autoencoder over `num_images` images takes.
    #[must_use]
    pub fn of_pictures(experiment: &Experiment, num_images: usize) -> Self {
        let model = &experiment.method.model.config;
        let num_bytes = times(&[num_images, activations(model).iter().sum()]).saturating_mul(4);
        let pictures = Part { name: "activations", num_bytes, keys: "--images" };
        Self {
            held: held(experiment),
            parts: vec![theta(experiment), pictures, PROGRAM],
            num_threads: num_threads(experiment),
            device: None,
        }
    }

    /// Bytes in all, with what is held already.
    #[must_use]
    pub fn total(&self) -> u64 {
        sum(&self.parts).saturating_add(self.held.num_bytes)
    }

    /// The parts, their sum and what there is, on a line for people.
    #[must_use]
    pub fn text(&self) -> String {
        let part = |part: &Part| format!("{} about {}", part.name, bytes_text(part.num_bytes));
        let parts = self.parts.iter().filter(|part| part.name != PROGRAM.name && part.num_bytes > 0);
        let parts: Vec<_> = std::iter::once(&self.held).chain(parts).map(part).collect();
        let Available { num_bytes, limit } = available();
        let there = match num_bytes {
            u64::MAX => "an unknown amount".to_owned(),
            num_bytes => bytes_text(num_bytes.saturating_add(self.held.num_bytes)),
        };
        format!("{}; about {} of {there} that {limit} leaves", parts.join(", "), bytes_text(self.total()))
    }

    /// What is taken of a device's own memory beside what is free there, on a line for people; none where there is no
    /// such device.
    #[must_use]
    pub fn device_text(&self) -> Option<String> {
        let (device, DeviceMemoryBound { needed_bytes, available_bytes }) = self.device?;
        let [needed, free] = [needed_bytes, available_bytes].map(bytes_text);
        Some(format!("about {needed} of the {free} that {device} has free"))
    }

    /// Refuses what does not fit, or only warns of it, as `run.memory_check` says.
    ///
    /// # Errors
    /// With one line that names the sum, the largest part and the keys that make it smaller.
    pub fn check(&self, check: MemoryCheck) -> Result<(), CliError> {
        self.check_or(check, "run.memory_check = \"warn\"")
    }

    /// As [`Needs::check`], for a command where `way_out` is what turns the refusal into a warning.
    ///
    /// # Errors
    /// As [`Needs::check`].
    pub fn check_or(&self, check: MemoryCheck, way_out: &str) -> Result<(), CliError> {
        let lines: Vec<String> = self.problem(available()).into_iter().chain(self.device_problem()).collect();
        match check {
            _ if lines.is_empty() => Ok(()),
            MemoryCheck::Warn => {
                for line in lines {
                    tracing::warn!(kind = "memory", "{line}");
                }
                Ok(())
            }
            MemoryCheck::Refuse => {
                let lines = lines.into_iter().map(|line| format!("{line}; {way_out} goes on all the same")).collect();
                Err(CliError::Failed { lines, exit_code: ExitCode::Config })
            }
        }
    }

    /// What is said if a device has less than needed.
    fn device_problem(&self) -> Option<String> {
        let (device, DeviceMemoryBound { needed_bytes, available_bytes }) = self.device?;
        (needed_bytes > available_bytes).then(|| {
            let [needed, free] = [needed_bytes, available_bytes].map(bytes_text);
            format!(
                "memory: this needs about {needed} of memory on {device}, which has {free} free (less with \
                 pretrain.batch, finetune.batch, policy.batch, model.patch, model.depth, pipeline.lag; \
                 engine = \"cpu\" needs none of it)"
            )
        })
    }

    /// What is said if there is less than needed.
    fn problem(&self, Available { num_bytes, limit }: Available) -> Option<String> {
        let num_bytes_reserved = match limit {
            Limit::AddressSpace => THREAD_ADDRESS_BYTES.saturating_mul(self.num_threads as u64),
            _ => 0,
        };
        let reserved = Part { num_bytes: num_bytes_reserved, ..RESERVED };
        let to_come = sum(&self.parts).saturating_add(reserved.num_bytes);
        if to_come <= num_bytes {
            return None;
        }
        let all = std::iter::once(&self.held).chain(&self.parts).chain([&reserved]);
        let largest = all.max_by_key(|part| part.num_bytes).unwrap_or(&self.held);
        let held = match self.held.num_bytes {
            0 => String::new(),
            num_bytes => format!(" beside the {} of data that it holds", bytes_text(num_bytes)),
        };
        Some(format!(
            "memory: this needs about {}{held}, {limit} leaves {}; the most goes to {}, {} (less with {})",
            bytes_text(to_come),
            bytes_text(num_bytes),
            largest.name,
            bytes_text(largest.num_bytes),
            largest.keys,
        ))
    }
}

/// The part that a device with a memory of its own takes from the host.
const ACTIVATIONS: &str = "activations";
const PROGRAM: Part = Part { name: "the program", num_bytes: PROGRAM_BYTES, keys: "nothing" };
/// What counts only where address space is limited.
const RESERVED: Part = Part {
    name: "address space that threads reserve",
    num_bytes: 0,
    keys: "actors.STAGE.workers, or without ulimit -v",
};

fn sum(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.num_bytes).fold(0, u64::saturating_add)
}

/// The product of sizes that a configuration may make as large as it likes.
fn times(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |product: u64, factor| product.saturating_mul(*factor as u64))
}

fn held(experiment: &Experiment) -> Part {
    let data = &experiment.data;
    let test = data.test.as_ref().map_or(0, |test| test.resident_bytes());
    let num_bytes = data.train.resident_bytes().saturating_add(test);
    Part { name: "data", num_bytes, keys: "fewer or smaller images" }
}

fn num_threads(experiment: &Experiment) -> usize {
    // Load, score and log, and those that belong to no stage.
    StageName::ALL.into_iter().map(|stage| experiment.config.actors.stage(stage).num_workers()).sum::<usize>() + 4
}

fn device_bound(experiment: &Experiment) -> Option<(&'static str, DeviceMemoryBound)> {
    let (config, method) = (&experiment.config, &experiment.method);
    let device = method.engine.device.get();
    let spec = MemorySpec {
        model: &method.model,
        batch: PerLevel { pretrain: config.pretrain.batch, finetune: config.finetune.batch, mask: config.policy.batch },
        lag: method.lag,
        has_branches: method.searches_branches(),
        is_tangent: method.hypergradient.is_forward_mode(),
        precision: method.precision,
    };
    Some((device.name(), device.memory_bound(&spec)?))
}

fn len(experiment: &Experiment, level: Level) -> u64 {
    experiment.method.model.layout(level).len as u64
}

fn theta(experiment: &Experiment) -> Part {
    // As it was read from the checkpoint, with its moments, and as it is used.
    let num_bytes = len(experiment, Level::Pretrain).saturating_add(len(experiment, Level::Mask)).saturating_mul(4 * 6);
    Part { name: "weights", num_bytes, keys: "a checkpoint of smaller networks" }
}

/// Values, gradient and both moments of every set, and the versions that are held besides: a step
/// writes the next one while snapshots hold the last.
fn weight_bytes(experiment: &Experiment) -> u64 {
    let lag = experiment.method.lag;
    let teacher = if experiment.method.reads_teacher() { 3 } else { 0 };
    // θ and both moments of three branches, the gradient and the values of a step, the moments that it writes to copies,
    // and those of each snapshot; φ of two branches.
    let (branches, phi) = if experiment.method.searches_branches() { (9 + 4 + 2 * (1 + lag), 2) } else { (0, 0) };
    let sets = [(Level::Pretrain, 6 + lag + teacher + branches), (Level::Finetune, 5), (Level::Mask, 6 + lag + phi)];
    sets.iter().map(|(set, copies)| len(experiment, *set).saturating_mul(4 * copies)).fold(0, u64::saturating_add)
}

/// Values that the recorded pass of an image keeps for its backward pass: in level 1, and in level 2. About 15 vectors
/// of the width for each token and block, and the attention weights.
fn activations(model: &ModelConfig) -> [usize; 2] {
    let block = |tokens: usize, dim: usize, heads: usize| {
        tokens.saturating_mul((15 * dim).saturating_add(heads.saturating_mul(tokens)))
    };
    let (all, visible) = (model.num_patches() + 1, model.max_visible() + 1);
    let decoder = model.dec_depth.saturating_mul(block(all, model.dec_dim, model.dec_heads));
    let encoder = model.depth.saturating_mul(block(visible, model.dim, model.heads));
    // Recycled memory serves what is up to a fifth smaller; where the mask ratio has a schedule, memory of each size
    // on the way stays.
    let num_sizes = ((model.max_visible() as f64 / model.min_visible().max(1) as f64).ln() / 1.25f64.ln()).floor();
    let sizes: f64 = (0..=num_sizes as i32).map(|size| 0.8f64.powi(size)).sum();
    let level_1 = ((encoder as f64 * sizes) as usize).saturating_add(decoder);
    [level_1, model.depth.saturating_mul(block(all, model.dim, model.heads))]
}

/// What the largest recorded passes keep, over all compute threads.
fn activation_bytes(experiment: &Experiment) -> u64 {
    let config = &experiment.config;
    let [of_level_1, level_2] = activations(&experiment.method.model.config);
    let pieces = |stage: StageName, batch: usize| {
        let threads = config.actors.stage(stage).num_workers();
        threads * config.actors.micro_batch(stage, batch, threads).max(config.train.grain)
    };
    // The pass of level 2 keeps the whole finetune batch, and of the validation batch what its threads have in hand.
    let validation = pieces(StageName::Evaluator, config.policy.batch).min(config.policy.batch);
    let level_1 = times(&[4, of_level_1, pieces(StageName::Encoder, config.pretrain.batch).min(config.pretrain.batch)]);
    let level_2 = match experiment.method.is_learned() {
        true => times(&[4, level_2, config.finetune.batch + validation]),
        false => 0,
    };
    // The reward of a learned mask ratio and the branches of a search take level 1's gradient once more, in level 3.
    let level_3 = match experiment.method.ratio_arms || experiment.method.searches_branches() {
        true => times(&[4, of_level_1, pieces(StageName::Policy, config.pretrain.batch).min(config.pretrain.batch)]),
        false => 0,
    };
    let all = [level_1, level_2, level_3];
    if experiment.method.lag == 0 {
        all.into_iter().max().unwrap_or(0)
    } else {
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// What the pipeline's queues hold when they are full. Parts of checkpoints are bounded by the queue of the log stage
/// alone (see `check`), but no more than two checkpoints are on their way unless the disk is slower than the training.
fn queue_bytes(experiment: &Experiment) -> Result<u64, CliError> {
    let topology = experiment.topology()?;
    let branches = if experiment.method.searches_branches() { (9, 2) } else { (0, 0) };
    let sets = [
        (Level::Pretrain, 3 + branches.0),
        (Level::Finetune, 3),
        (Level::Mask, 5 + experiment.method.lag + branches.1),
    ];
    let checkpoint = sets.iter().map(|(set, copies)| len(experiment, *set).saturating_mul(4 * copies));
    let two_checkpoints = checkpoint.fold(0, u64::saturating_add).saturating_mul(2);
    let edge = |bound: &EdgeBound| {
        let items = times(&[bound.queue_cap + bound.num_in_hand, bound.payload_bytes]);
        items.saturating_add(two_checkpoints.min(bound.large_bytes as u64))
    };
    Ok(topology.bounds().iter().map(edge).fold(0, u64::saturating_add))
}

/// The last masks that are remembered, by which changes are told.
fn mask_bytes(experiment: &Experiment) -> u64 {
    times(&[MAX_REMEMBERED, experiment.method.model.config.num_patches().div_ceil(8)])
        + MAX_REMEMBERED as u64 * MASK_BYTES
}

/// Features of the train and the test images, twice while they are compared, and a batch on its way.
fn evaluation_bytes(experiment: &Experiment) -> Part {
    let (config, data, model) = (&experiment.config, &experiment.data, &experiment.method.model.config);
    let num_test = data.test.as_ref().map_or(0, |test| test.len()).min(config.eval.max_test);
    let num_train = data.train.len().min(config.eval.max_train);
    let features = times(&[2 * 4, model.dim, num_train + num_test]);
    // A pass that keeps nothing has two blocks' vectors at a time.
    let [_, level_2] = activations(model);
    let batch = times(&[4, config.eval.batch, 2 * level_2 / model.depth.max(1) + model.image_values()]);
    let num_bytes = features.saturating_add(batch);
    Part { name: "evaluation", num_bytes, keys: "eval.max_train, eval.max_test, eval.batch" }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mlomae_dataflow::config::{Config, ConfigInputs};
    use mlomae_model::lane::{Device, DeviceChoice, Lane, LaneSize, Lanes, LanesSpec};
    use mlomae_model::{Arena, Model, ModelError, Precision};

    use mlomae_model::choice::Named;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn needs(settings: &[&str]) -> Needs {
        let inputs = settings.iter().fold(ConfigInputs::quickstart(), |inputs, setting| inputs.set(setting));
        let config = Config::resolve(&inputs).expect("valid");
        Needs::of_training(&Experiment::new(config, None).expect("experiment")).expect("needs")
    }

    fn left(num_bytes: u64) -> Available {
        Available { num_bytes, limit: Limit::Machine }
    }

    #[test]
    fn the_quickstart_fits_a_small_machine_and_absurd_networks_fit_none() {
        assert_eq!(needs(&[]).problem(left(GIB)), None);
        let huge = needs(&[
            "model.dim=4096",
            "model.heads=64",
            "model.depth=64",
            "model.dec_dim=4096",
            "model.dec_heads=64",
            "model.dec_depth=64",
            "mask.hidden=8192",
            "model.patch=2",
        ]);
        assert!(huge.total() > 100 * GIB, "{}", huge.text());
        let line = huge.problem(left(64 * GIB)).expect("refused");
        assert!(line.starts_with("memory: this needs about ") && line.contains("leaves 64.00 GiB"), "{line}");
        assert!(line.contains("model.dim") || line.contains("pretrain.batch"), "{line}");
        assert!(huge.check(MemoryCheck::Warn).is_ok());
    }

    /// A card with so many free bytes, of which every run needs a MiB.
    struct Card(u64);

    impl Named for Card {
        fn name(&self) -> &'static str {
            "card"
        }
        fn summary(&self) -> &'static str {
            "A card of the test"
        }
    }

    impl Device for Card {
        fn problem(&self) -> Option<String> {
            None
        }
        fn memory_bound(&self, spec: &MemorySpec<'_>) -> Option<DeviceMemoryBound> {
            assert_eq!((spec.batch.pretrain, spec.lag, spec.is_tangent), (64, 2, true));
            Some(DeviceMemoryBound { needed_bytes: 1 << 20, available_bytes: self.0 })
        }
        fn lanes(&self, _: &LanesSpec) -> Result<Lanes, ModelError> {
            unreachable!("never opened")
        }
        fn refuses(&self, _: Precision) -> Option<String> {
            None
        }
        fn lane(
            &self,
            _: &Arc<Model>,
            _: &Arena,
            _: usize,
            _: Precision,
            _: LaneSize,
        ) -> Result<Box<dyn Lane>, ModelError> {
            unreachable!("never opened")
        }
    }

    #[test]
    fn a_device_with_a_memory_of_its_own_is_held_to_it_as_the_host_is() {
        static LARGE: Card = Card(GIB);
        static SMALL: Card = Card(1 << 19);
        let settings = ["pretrain.batch=64", "pipeline.lag=2", "method.hypergradient=tangent"];
        let inputs = settings.iter().fold(ConfigInputs::quickstart(), |inputs, setting| inputs.set(setting));
        let config = Config::resolve(&inputs).expect("valid");
        let mut experiment = Experiment::new(config, None).expect("experiment");
        let of_host = Needs::of_training(&experiment).expect("needs");
        assert_eq!((of_host.device_text(), of_host.device_problem()), (None, None));
        let mut on = |device: &'static dyn Device| {
            experiment.method.engine.device = DeviceChoice::of(device);
            Needs::of_training(&experiment).expect("needs")
        };
        let large = on(&LARGE);
        assert_eq!(large.device_text().as_deref(), Some("about 1.0 MiB of the 1.00 GiB that card has free"));
        assert!(large.total() < of_host.total() && !large.text().contains("activations"), "{}", large.text());
        assert_eq!(large.device_problem(), None);
        let small = on(&SMALL);
        assert!(small.check(MemoryCheck::Warn).is_ok());
        let error = small.check(MemoryCheck::Refuse).expect_err("refused");
        assert_eq!(error.exit_code(), ExitCode::Config);
        let line = error.to_string();
        assert!(line.starts_with("memory: this needs about 1.0 MiB of memory on card, which has 512.0 KiB"), "{line}");
        assert!(line.ends_with("run.memory_check = \"warn\" goes on all the same"), "{line}");
    }

    #[test]
    fn threads_reserve_address_space() {
        let needs = needs(&[]);
        let num_bytes = sum(&needs.parts);
        assert_eq!(needs.problem(left(num_bytes)), None);
        assert!(needs.problem(left(num_bytes - 1)).is_some());
        let line = needs.problem(Available { num_bytes, limit: Limit::AddressSpace }).expect("refused");
        assert!(line.contains("the most goes to address space that threads reserve, "), "{line}");
    }
}
