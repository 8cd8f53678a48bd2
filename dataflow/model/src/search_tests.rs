//! The state machine of a search, and that it finds the candidate which is the best by construction.

use std::sync::Arc;

use super::*;
use crate::hypergradient::Carried;
use crate::init::{normals, tensor_rng};
use crate::lane::CpuLane;
use crate::layout::SharedLayout;
use crate::levels::optimizer::AdamWConfig;
use crate::masking::{MaskSelect, MaskWeights, MaskingChoice};
use crate::model::Model;
use crate::{Level, MaskInput, ModelConfig};

const SETTINGS: (u64, u64) = (6, 2);

fn settings() -> Settings {
    let (branch_steps, branch_judges) = SETTINGS;
    Settings { search: PolicySearch::Branch, branch_steps, branch_judges, ..Settings::default() }
}

/// A network, a batch of images for each level and labels of the last two.
struct World {
    lane: CpuLane,
    theta: Vector,
    adamw: AdamW,
    phi: Vector,
    images: [Vector; 3],
    targets: [Targets; 2],
}

const BATCH: usize = 24;

fn config() -> ModelConfig {
    ModelConfig {
        image: 8,
        patch: 2,
        channels: 1,
        dim: 8,
        depth: 1,
        heads: 2,
        dec_dim: 8,
        dec_depth: 1,
        dec_heads: 2,
        mask_input: MaskInput::Pixels,
        masking: MaskingChoice::by_name("linear").unwrap(),
        mask_weights: MaskWeights::Normalised,
        num_classes: 3,
        ..ModelConfig::default()
    }
}

impl World {
    fn of(config: &ModelConfig) -> Self {
        let model = Arc::new(Model::new(config).unwrap());
        let images = ["p", "f", "v"].map(|name| {
            let mut values = vec![0.0; BATCH * config.image_values()];
            normals(&mut values, 1.0, &mut tensor_rng(2, name));
            Vector::from(values)
        });
        let classes = |shift: usize| Targets::Classes((0..BATCH).map(|i| ((i * i + shift) % 3) as i32).collect());
        World {
            theta: model.init(Level::Pretrain, 1).into(),
            adamw: AdamW::new(AdamWConfig::default(), model.layout(Level::Pretrain)),
            phi: model.init(Level::Mask, 1).into(),
            images,
            targets: [classes(0), classes(1)],
            lane: CpuLane::serial(model, 4),
        }
    }

    fn moment<'a>(&'a self, rule: &'a MaskRule, rate: f64) -> Moment<'a> {
        let [images, f, v] = &self.images;
        let [y_f, y_v] = &self.targets;
        Moment {
            theta: &self.theta,
            adamw: &self.adamw,
            images,
            rule,
            rate,
            finetune: LabelledImages { images: f, targets: y_f },
            validation: LabelledImages { images: v, targets: y_v },
        }
    }

    fn layout(&self) -> SharedLayout {
        self.lane.model().layout(Level::Mask).clone()
    }
}

fn rule(step: u64) -> MaskRule {
    MaskRule { seed: 3, step, select: MaskSelect::Sample, ..MaskRule::BY_SCORE }
}

fn bits(vector: &Vector) -> Vec<u32> {
    vector.to_host().unwrap().iter().map(|value| value.to_bits()).collect()
}

#[test]
fn each_branch_is_a_run_of_its_own_from_the_same_state() {
    let mut world = World::of(&config());
    // A state of AdamW that is not the initial one.
    for step in 0..3 {
        let scored = world.lane.score(None, &world.phi, &world.images[0], &rule(step)).unwrap();
        let g = world.lane.pretrain(&world.theta, &world.phi, &world.images[0], &scored).unwrap();
        world.theta = world.lane.update(&mut world.adamw, &world.theta, &g.gradient, 1e-2).unwrap();
    }
    let plus = world.lane.combined(1.5, &world.phi, 0.0, &world.phi).unwrap();
    let mut lane = world.lane.clone();
    let mut search = Search::begin(&mut lane, &world.phi, plus.clone(), &world.moment(&rule(3), 0.0)).unwrap();
    let policy = Policy { phi: world.phi.clone(), is_random: false };
    let (num_steps, num_judged) = SETTINGS;
    for step in 4..4 + num_steps {
        let now = rule(step);
        let at = world.moment(&now, 1e-2);
        let progress = search.advance(&mut lane, &policy, &at, &settings()).unwrap();
        assert_eq!(progress.judgement.is_some(), step >= 4 + num_steps - num_judged, "{step}");
        assert_eq!(progress.end.is_some(), step == 3 + num_steps, "{step}");
    }
    assert_eq!(search.judged.len() as u64, num_judged);

    let minus = world.lane.combined(0.5, &world.phi, 0.0, &world.phi).unwrap();
    let of_strategy = World::of(&ModelConfig { masking: MaskingChoice::by_name("random").unwrap(), ..config() });
    for (candidate, branch) in Candidate::ALL.into_iter().zip(&search.branches) {
        // Random masks are what a run with that strategy trains with, down to its draws.
        let (mut lane, phi) = match candidate {
            Candidate::Plus => (world.lane.clone(), plus.clone()),
            Candidate::Minus => (world.lane.clone(), minus.clone()),
            Candidate::Random => (of_strategy.lane.clone(), Vector::default()),
        };
        let (mut theta, mut adamw) = (world.theta.clone(), world.adamw.clone());
        for step in 4..4 + num_steps {
            let scored = lane.score(None, &phi, &world.images[0], &rule(step)).unwrap();
            assert_eq!(scored.scores().is_none(), candidate == Candidate::Random);
            let g = lane.pretrain(&theta, &phi, &world.images[0], &scored).unwrap();
            theta = lane.update(&mut adamw, &theta, &g.gradient, 1e-2).unwrap();
        }
        assert_eq!(bits(&branch.theta), bits(&theta), "{candidate}");
        assert_eq!((bits(&branch.adamw.m), bits(&branch.adamw.v)), (bits(&adamw.m), bits(&adamw.v)), "{candidate}");
    }
}

/// Images in which the left half says the class and varies little, while the right half is loud noise: a policy that
/// weighs the left is good, one that weighs the right is harmful.
fn halves() -> World {
    let config = ModelConfig { dim: 16, mask_ratio: 0.75, ..config() };
    let mut world = World::of(&config);
    let side = config.image;
    for (images, targets) in world.images.iter_mut().zip([None, Some(0), Some(1)]) {
        let mut values = images.to_host().unwrap().to_vec();
        for (number, image) in values.chunks_exact_mut(side * side).enumerate() {
            let class = (number * number + targets.unwrap_or(0)) % 3;
            for (place, value) in image.iter_mut().enumerate() {
                let (row, column) = (place / side, place % side);
                if column < side / 2 {
                    // Stripes whose direction is the class.
                    let stripe = [row, column, row + column][class] % 2;
                    *value = 2.0 * (stripe as f32 - 0.5) + 0.1 * *value;
                }
            }
        }
        *images = values.into();
    }
    world
}

/// φ with the logit `left` for patches of the left half, and its opposite for the others.
fn of_left(world: &World, left: f32) -> Vector {
    let layout = world.layout();
    let mut phi = vec![0.0; layout.len];
    let position = layout.get("position.bias").unwrap();
    let grid = world.lane.model().config.grid();
    for (patch, value) in phi[position.range()].iter_mut().enumerate() {
        *value = if patch % grid < grid / 2 { left } else { -left };
    }
    phi.into()
}

/// A search of 60 steps from the initial encoder, with the step that leads from `phi` to `plus`. Scores only weigh.
fn searched(world: &World, phi: &Vector, plus: Vector) -> Decision {
    let (mut lane, settings) = (world.lane.clone(), Settings { branch_steps: 60, branch_judges: 4, ..settings() });
    let mut search = Search::begin(&mut lane, phi, plus, &world.moment(&rule(0), 0.0)).unwrap();
    let policy = Policy { phi: phi.clone(), is_random: false };
    for step in 1.. {
        let now = MaskRule { select: MaskSelect::Random, ..rule(step) };
        let at = world.moment(&now, 3e-3);
        if let Some((decision, next)) = search.advance(&mut lane, &policy, &at, &settings).unwrap().end {
            let expected = decision.winner.unwrap();
            assert_eq!(next.is_random, expected == Candidate::Random);
            assert_eq!(bits(&next.phi), bits(&search.branches[expected as usize].phi));
            assert_eq!(decision.num_judged, 4);
            return decision;
        }
    }
    unreachable!("a search ends")
}

#[test]
fn the_opposite_wins_where_the_gradient_has_the_wrong_sign() {
    let world = halves();
    let decisions = [3.0, -3.0].map(|left| searched(&world, &of_left(&world, 0.0), of_left(&world, left)));
    println!("{} | {}", decisions[0], decisions[1]);
    assert_eq!(decisions.each_ref().map(|decision| decision.winner), [Candidate::Plus, Candidate::Minus].map(Some));
    // Both are the same three branches.
    let reversed = [2, 1, 0].map(|place| decisions[0].losses[place]);
    assert_eq!(reversed, decisions[1].losses);
}

#[test]
fn random_masks_win_where_the_policy_is_harmful() {
    let world = halves();
    // Both steps stay with the wrong half.
    let decision = searched(&world, &of_left(&world, -6.0), of_left(&world, -5.0));
    println!("{decision}");
    assert_eq!(decision.winner, Some(Candidate::Random));
}

fn judged(judged: &[Judgement]) -> Decision {
    let world = World::of(&config());
    let branch = || Branch { phi: world.phi.clone(), theta: world.theta.clone(), adamw: world.adamw.clone() };
    Search { branches: [branch(), branch(), branch()], num_steps: 1, judged: judged.to_vec() }.decision()
}

#[test]
fn the_lowest_mean_wins_and_the_first_of_equals() {
    let [a, b, c] = [0.25, 0.5, 0.75].map(Some);
    for (losses, winner) in [
        (vec![[a, b, c]], Candidate::Plus),
        (vec![[b, a, c]], Candidate::Random),
        (vec![[c, b, a]], Candidate::Minus),
        (vec![[b, b, b]], Candidate::Plus),
        (vec![[c, b, b]], Candidate::Random),
        (vec![[a, b, a]], Candidate::Plus),
        (vec![[a, c, b], [c, b, a]], Candidate::Minus),
        (vec![[a, c, b], [None, c, b]], Candidate::Minus),
        (vec![[None, None, c]], Candidate::Minus),
    ] {
        assert_eq!(judged(&losses).winner, Some(winner), "{losses:?}");
    }
    let none = judged(&[[None; 3]]);
    assert_eq!((none.winner, none.losses), (None, [None; 3]));
    let line = judged(&[[a, None, b]]).to_string();
    assert_eq!(line, "plus 0.2500, random diverged, minus 0.5000, mean of 1 labelled pairs: the policy moves to plus");
}

#[test]
fn a_branch_that_diverges_loses_and_if_all_do_the_policy_stays() {
    let mut world = World::of(&config());
    let mut lane = world.lane.clone();
    let huge = |vector: &Vector| Vector::from(vec![f32::INFINITY; vector.len()]);
    let (phi, num_steps) = (world.phi.clone(), SETTINGS.0);
    let mut search = Search::begin(&mut lane, &phi, phi.clone(), &world.moment(&rule(0), 0.0)).unwrap();
    search.branches[0].theta = huge(&world.theta);
    let policy = Policy { phi, is_random: true };
    let end = |search: &mut Search, lane: &mut CpuLane, world: &World| {
        let mut last = None;
        for step in 1..=num_steps {
            let now = rule(step);
            last = search.advance(lane, &policy, &world.moment(&now, 1e-3), &settings()).unwrap().end;
        }
        last.unwrap()
    };
    let (decision, _) = end(&mut search, &mut lane, &world);
    assert!(decision.losses[0].is_none() && decision.winner.is_some_and(|winner| winner != Candidate::Plus));

    world.theta = huge(&world.theta);
    let phi = world.phi.clone();
    let mut search = Search::begin(&mut lane, &phi, phi.clone(), &world.moment(&rule(0), 0.0)).unwrap();
    let (decision, next) = end(&mut search, &mut lane, &world);
    assert_eq!((decision.winner, next.is_random, bits(&next.phi)), (None, true, bits(&phi)));
}

/// While a search is on hypergradients add up, and when it ends the next begins with the mean of all of them.
#[test]
fn searches_follow_each_other_with_the_mean_of_what_came_in_between() {
    let world = World::of(&config());
    let settings = Settings { average: 2, branch_steps: 3, branch_judges: 1, ..settings() };
    let layout = world.layout();
    let adamw = || AdamW::new(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() }, &layout);
    let (mut lane, mut carried, mut ours, mut phi) =
        (world.lane.clone(), Carried::default(), adamw(), world.phi.clone());
    let (mut theirs, mut since, mut ends, mut begins) = (adamw(), Vec::new(), Vec::new(), Vec::new());
    for outer in 0..12 {
        let now = rule(outer);
        let at = world.moment(&now, 1e-3);
        let was_on = carried.search.is_some();
        if let Some(progress) = carried.advance_search(&mut lane, &phi, &at, &settings).unwrap()
            && let Some((_, policy)) = progress.end
        {
            phi = policy.phi;
            ends.push(outer);
        }
        let gradient = Vector::from(vec![(outer as f32 + 1.0) * if outer % 3 == 0 { -1.0 } else { 1.0 }; layout.len]);
        since.push(gradient.to_host().unwrap()[0]);
        let next = carried.update(&mut lane, &mut ours, &phi, &gradient, 0.01, (Some(&at), &settings)).unwrap();
        assert_eq!(bits(&next), bits(&phi), "a proposal moves nothing");
        let begun = carried.search.as_ref().filter(|search| search.num_steps == 0);
        if let Some(search) = begun {
            assert!(!was_on || ends.contains(&outer));
            let mean: f32 = since.iter().sum::<f32>() * (1.0 / since.len() as f32);
            let mean = Vector::from(vec![mean; layout.len]);
            let plus = lane.update(&mut theirs, &phi, &mean, 0.01).unwrap();
            let close = |a: &Vector, b: &Vector| {
                let (a, b) = (a.to_host().unwrap(), b.to_host().unwrap());
                a.iter().zip(b.iter()).all(|(a, b)| (a - b).abs() < 1e-6)
            };
            assert!(close(&search.branches[0].phi, &plus));
            let middle = lane.combined(0.5, &search.branches[0].phi, 0.5, &search.branches[2].phi).unwrap();
            assert!(close(&middle, &phi) && bits(&search.branches[1].phi) == bits(&phi));
            since.clear();
            begins.push(outer);
        }
    }
    assert_eq!((begins, ends), (vec![1, 4, 7, 10], vec![4, 7, 10]));
}

#[test]
fn a_task_without_a_head_in_closed_form_is_refused_by_name() {
    let mut world = World::of(&config());
    world.targets[1] = Targets::Labels { num: 3, values: [1; 3 * BATCH].into() };
    let mut lane = world.lane.clone();
    let phi = world.phi.clone();
    let mut search = Search::begin(&mut lane, &phi, phi.clone(), &world.moment(&rule(0), 0.0)).unwrap();
    let policy = Policy { phi, is_random: false };
    let one = Settings { branch_steps: 1, branch_judges: 1, ..settings() };
    let error = search.advance(&mut lane, &policy, &world.moment(&rule(1), 0.0), &one).unwrap_err().to_string();
    assert!(error.contains("learns from classes"), "{error}");
}
