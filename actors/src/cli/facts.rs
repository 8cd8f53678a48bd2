//! What is known of a run before it starts, in lines for people.

use mlomae_dataflow::pipeline::topology;
use mlomae_dataflow::plan::Role;
use mlomae_dataflow::stage_name::StageName;
use mlomae_dataflow::topology::Topology;
use mlomae_model::layout::ParamSet;

use crate::error::{CliError, exit_code};
use crate::setup::Prepared;

/// A name and what is to be said of it.
pub(crate) type Fact = (&'static str, String);

/// Data, roles, networks, length and memory of the run.
///
/// # Errors
/// Never for a checked configuration.
pub(crate) fn facts(prepared: &Prepared) -> Result<Vec<Fact>, CliError> {
    let (config, data, method) = (&prepared.config, &prepared.data, &prepared.method);
    let model = &method.model.config;
    let info = data.train.info();
    let num_test = data.test.as_ref().map_or(0, |test| test.len());
    let column = info.label_column.as_ref().map_or_else(String::new, |column| format!(" of column {column}"));
    let kind = if data.channels == 1 { "grey" } else { "RGB" };
    let num = |role| data.roles.indices(role).len();
    let params = |set| count_text(method.model.layout(set).len);
    let topology = topology_of(prepared)?;
    let masks = if method.baseline { "random masks" } else { "learned masks" };
    Ok(vec![
        (
            "data",
            format!(
                "{} ({}), {} train and {num_test} test images, {side} x {side} {kind}, {} classes{column}",
                info.name,
                info.format,
                info.num_samples,
                data.num_classes(),
                side = data.image,
            ),
        ),
        (
            "roles",
            format!(
                "pretrain {}, train {}, validation {}, test {num_test}; disjoint",
                num(Role::Pretrain),
                num(Role::Train),
                num(Role::Validation)
            ),
        ),
        (
            "test",
            match data.test {
                Some(_) => data.test_role.text.clone(),
                None => format!("none, {}: train ends without an evaluation", data.test_role.text),
            },
        ),
        (
            "networks",
            format!(
                "autoencoder {}, masking network {}, head {} weights",
                params(ParamSet::Pretrain),
                params(ParamSet::Mask),
                params(ParamSet::Head)
            ),
        ),
        (
            "patches",
            format!(
                "{grid} x {grid} of {patch} x {patch} pixels, {} of {} visible, {masks}",
                model.num_visible(),
                model.num_patches(),
                grid = model.grid(),
                patch = model.patch,
            ),
        ),
        (
            "length",
            format!(
                "{} outer iterations of {} level-1 steps, batch {}; {:.1} epochs",
                method.total_outer,
                method.unroll,
                config.pretrain.batch,
                config.num_steps() as f64 / method.steps_per_epoch.max(1) as f64
            ),
        ),
        (
            "memory",
            format!(
                "weights, gradients and moments about {}, activations about {}, queues at most {}",
                bytes_text(weight_bytes(prepared)),
                bytes_text(activation_bytes(prepared)),
                bytes_text(topology.bound_bytes())
            ),
        ),
    ])
}

/// The pipeline's topology.
///
/// # Errors
/// Never for a checked configuration.
pub(crate) fn topology_of(prepared: &Prepared) -> Result<Topology, CliError> {
    let batches = prepared.load_train.plan().batch_sizes();
    topology(&prepared.method, &prepared.config.actors, batches)
        .map_err(|error| CliError::new(exit_code::INTERNAL, format!("topology: {error}")))
}

/// Values, gradient and both moments of every set, and the versions that are held besides: a step
/// writes the next one while snapshots hold the last.
fn weight_bytes(prepared: &Prepared) -> usize {
    let method = &prepared.method;
    let len = |set| method.model.layout(set).len;
    let lag = usize::try_from(method.lag).unwrap_or(usize::MAX);
    4 * (len(ParamSet::Pretrain) * (6 + lag) + len(ParamSet::Head) * 5 + len(ParamSet::Mask) * (6 + lag))
}

/// What the largest recorded pass keeps for its backward pass, over all compute threads: about 15 vectors
/// of the width for each token and block, and the attention weights.
fn activation_bytes(prepared: &Prepared) -> usize {
    let model = &prepared.method.model.config;
    let actors = &prepared.config.actors;
    let block = |tokens: usize, dim: usize, heads: usize| tokens * (15 * dim + heads * tokens);
    let all = model.num_patches() + 1;
    let visible = model.num_visible() + 1;
    let decoder = model.dec_depth * block(all, model.dec_dim, model.dec_heads);
    let level_1 = model.depth * block(visible, model.dim, model.heads) + decoder;
    let level_2 = model.depth * block(all, model.dim, model.heads);
    let config = &prepared.config;
    let pieces = |stage: StageName, batch: usize| {
        let threads = actors.stage(stage).num_workers();
        threads * actors.micro_batch(stage, batch, threads).max(config.train.grain)
    };
    // The pass of level 2 keeps the whole finetune batch, and of the validation batch what its threads have in hand.
    let validation = pieces(StageName::Evaluator, config.policy.batch).min(config.policy.batch);
    let level_1 = level_1 * pieces(StageName::Encoder, config.pretrain.batch).min(config.pretrain.batch);
    let level_2 = level_2 * (config.finetune.batch + validation);
    4 * if prepared.method.lag == 0 { level_1.max(level_2) } else { level_1 + level_2 }
}

/// `812`, `4.2 k`, `1.7 M`.
pub(crate) fn count_text(number: usize) -> String {
    let number = number as f64;
    match number {
        0.0..1e3 => format!("{number:.0}"),
        1e3..1e6 => format!("{:.1} k", number / 1e3),
        _ => format!("{:.1} M", number / 1e6),
    }
}

/// `12.3 MiB`.
pub(crate) fn bytes_text(bytes: usize) -> String {
    let bytes = bytes as f64;
    let kib = 1024.0;
    match bytes {
        0.0..1048576.0 => format!("{:.1} KiB", bytes / kib),
        1048576.0..1073741824.0 => format!("{:.1} MiB", bytes / kib.powi(2)),
        _ => format!("{:.2} GiB", bytes / kib.powi(3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!([812, 4_200, 1_700_000].map(count_text), ["812", "4.2 k", "1.7 M"]);
        assert_eq!([512, 3 << 20, 3 << 30].map(bytes_text), ["0.5 KiB", "3.0 MiB", "3.00 GiB"]);
    }
}
