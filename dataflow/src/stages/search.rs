//! The branch search of the policy stage: what it needs of a snapshot, what it logs, and its part of a checkpoint.

use mlomae_model::levels::optimizer::AdamW;
use mlomae_model::search::{Branch, Candidate, Judgement, Moment, Progress, Search};
use mlomae_model::{Level, Model, Vector};
use serde::{Deserialize, Serialize};

use crate::counts::Step;
use crate::flow::stage_name::StageName;
use crate::method::Method;
use crate::method::batch::{LabelledBatch, Snapshot, StepMetric};
use crate::record::{CheckpointFile, EventRow, FlatTensors, Level as LogLevel, Metric, Recorder, Severity};

/// Key of the state of a search that is on.
pub(crate) const BRANCH: &str = "branch";
/// Key of whether random masks are in use, of each version in flight, the newest first.
pub(crate) const ARE_RANDOM: &str = "random_masks";

/// Level 1's optimizer at a snapshot; none where the snapshot has not all of it.
pub(crate) fn level_1(method: &Method, snapshot: &Snapshot) -> Option<AdamW> {
    let StepMetric { first_moment, second_moment, step, adamw } = snapshot.metric.as_ref()?;
    let layout = method.model.layout(Level::Pretrain);
    Some(AdamW::restored(*adamw, layout, *step, first_moment.clone()?, second_moment.clone()))
}

/// What a snapshot gives a search, with level 1's optimizer there and the labelled batches.
pub(crate) fn moment<'a>(
    method: &Method,
    snapshot: &'a Snapshot,
    adamw: &'a AdamW,
    [finetune, validation]: &'a [LabelledBatch; 2],
) -> Moment<'a> {
    let Snapshot { outer, theta, last, .. } = snapshot;
    let last_step = outer.end_step(method.unroll).0 - 1;
    Moment {
        theta,
        adamw,
        images: &last.batch.images,
        rule: &last.rule,
        rate: method.rate(Level::Pretrain, last_step),
        finetune: finetune.labelled(),
        validation: validation.labelled(),
    }
}

/// Logs what the outer iteration that ends with `step` has brought a search.
pub(crate) fn record(method: &Method, progress: &Progress, step: Step, recorder: &mut Recorder) {
    let moment = method.moment(step, LogLevel::Mask);
    for (candidate, loss) in Candidate::ALL.iter().zip(progress.judgement.iter().flatten()) {
        if let Some(loss) = loss {
            let (metric, name) = (Metric::BranchLoss, Metric::branch_loss(candidate.name()));
            recorder.figure(moment, metric, name, f64::from(*loss), metric.unit());
        }
    }
    let Some((decision, _)) = &progress.end else { return };
    if let Some(winner) = decision.winner {
        recorder.metric(moment, Metric::BranchWinner, winner.sign());
    }
    if decision.losses.iter().any(Option::is_none) {
        let step = step.0;
        tracing::warn!(kind = "branch_diverged", step, "policy search: a branch has diverged: {decision}");
    } else {
        recorder.event(EventRow {
            severity: Severity::Info,
            kind: "branch_decided".into(),
            stage: Some(StageName::Policy.as_str().into()),
            message: format!("policy search: {decision}"),
            fields: serde_json::json!({ "winner": decision.winner.map(Candidate::name) }).to_string(),
        });
    }
}

/// The state of a search beside its tensors.
#[derive(Serialize, Deserialize)]
pub(crate) struct BranchState {
    /// Steps that each branch has trained.
    pub(crate) num_steps: u64,
    /// Steps of AdamW that the branches have done, with those before the search.
    pub(crate) adamw_step: u64,
    /// How they were judged so far, in order.
    pub(crate) judged: Vec<Judgement>,
}

/// The state of a search for `state.json`.
pub(crate) fn branch_state(search: &Search) -> serde_json::Value {
    let Search { branches, num_steps, judged } = search;
    let state = BranchState { num_steps: *num_steps, adamw_step: branches[0].adamw.step, judged: judged.clone() };
    serde_json::json!(state)
}

/// What the names of a candidate's tensors of one kind begin with.
pub(crate) fn branch_prefix(candidate: Candidate, kind: &str) -> String {
    format!("policy.branch.{candidate}.{kind}.")
}

/// The tensors of a search: θ and moments of each branch, and φ of those that move it.
pub(crate) fn branch_tensors(search: &Search, model: &Model) -> Vec<FlatTensors> {
    let (of_theta, of_phi) = (model.layout(Level::Pretrain), model.layout(Level::Mask));
    let mut tensors = Vec::new();
    for (candidate, Branch { phi, theta, adamw }) in Candidate::ALL.into_iter().zip(&search.branches) {
        let mut add = |kind, layout, values: &Vector| {
            let prefix = branch_prefix(candidate, kind);
            tensors.push(FlatTensors::new(CheckpointFile::Optimizer, prefix, layout, values.clone()));
        };
        for (kind, values) in [("theta", theta), ("m", &adamw.m), ("v", &adamw.v)] {
            add(kind, of_theta, values);
        }
        // That of random masks is the newest φ.
        if candidate != Candidate::Random {
            add("phi", of_phi, phi);
        }
    }
    tensors
}
