//! Conditions of tasks, and tasks that break them.

use std::sync::atomic::{AtomicU64, Ordering};

use dfdx::prelude::*;

use super::plain::{
    Init, Leaf, Leaves, ParamSpec, Plain, PlainTask, TapShape, Taped, each_row, one_hot_patches, targets_matrix,
};
use super::*;
use crate::ModelError;
use crate::choice::Registry;
use crate::init::{normal, tensor_rng};
use crate::tap::Tap;

const FACTS: TaskFacts = TaskFacts { dim: 12, depth: 2, grid: 3, patch: 2, num_classes: 3 };

/// Every kind, with each value of each option that is a name or a number.
fn shipped() -> Vec<TaskSpec> {
    let mut specs = Vec::new();
    for kind in TASKS {
        let plain = TaskSpec::of(TaskChoice::of(*kind));
        for option in kind.options() {
            match option.values {
                OptionValues::OneOf(names) => specs.extend(names.iter().map(|v| plain.clone().with(option.name, *v))),
                OptionValues::Integers(all) => specs.extend(all.iter().map(|v| plain.clone().with(option.name, *v))),
                OptionValues::Numbers => {}
            }
        }
        specs.push(plain);
    }
    specs
}

#[test]
fn every_task_keeps_the_conditions() {
    for spec in shipped() {
        let task = spec.build(&FACTS).unwrap();
        let y = spec.kind.get().example(&FACTS, conditions::NUM_IMAGES, 3);
        assert_eq!(y.len(), conditions::NUM_IMAGES, "{spec:?}");
        conditions::check(&*task, &FACTS, &y).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
    }
    let specs: Vec<TaskSpec> = shipped().into_iter().filter(|spec| spec.options.is_empty()).collect();
    let targets = specs.iter().map(|spec| spec.kind.get().example(&FACTS, conditions::NUM_IMAGES, 3));
    let all = build(&specs, &FACTS).unwrap();
    conditions::check(&*all, &FACTS, &Targets::Several(targets.collect())).unwrap();
}

#[test]
fn targets_and_tokens_of_another_kind_are_refused() {
    let all: Vec<TaskSpec> = shipped();
    for spec in &all {
        let task = spec.build(&FACTS).unwrap();
        let c: Vec<f64> = task.init(1).iter().map(|v| f64::from(*v)).collect();
        let of = |tap: &Tap| vec![0.5f32; tap.tokens(FACTS.num_patches()) * FACTS.dim];
        let values: Vec<Vec<f32>> = task.reads().iter().map(of).collect();
        let tap = |(values, tap): (&'static [f32], &Tap)| Tokens {
            per_image: tap.tokens(FACTS.num_patches()),
            dim: FACTS.dim,
            values,
        };
        let values: Vec<&'static [f32]> = values.into_iter().map(|v| &*v.leak()).collect();
        let z: Vec<Tokens<'_>> = values.into_iter().zip(task.reads()).map(tap).collect();
        let evaluate = |z: &[Tokens<'_>], y: &Targets| {
            task.evaluate(&At { c: &c, z, y, totals: &task.totals(y), noise: None }, Want::BOTH)
        };
        let own = spec.kind.get().example(&FACTS, 1, 3);
        evaluate(&z, &own).unwrap();
        for other in &all {
            let y = other.kind.get().example(&FACTS, 1, 3);
            if y.kind() != own.kind() {
                let error = evaluate(&z, &y).unwrap_err().to_string();
                assert!(error.contains(&format!("learns from {}, got {}", own.kind(), y.kind())), "{error}");
            }
        }
        assert!(evaluate(&[], &own).is_err(), "{spec:?}");
        assert!(evaluate(&z, &spec.kind.get().example(&FACTS, 2, 3)).is_err(), "{spec:?}: two images");
        assert!(task.predict(&c, &[]).is_err(), "{spec:?}");
        assert_eq!(task.predict(&c, &z).unwrap().len(), 1, "{spec:?}");
    }
}

#[test]
fn dropout_is_that_of_an_image_wherever_it_is() {
    let noise = Noise { rate: 0.4, seed: 3, outer: 5, pass: 1, first_image: 0 };
    let whole = noise.factors(6, 7);
    assert!(whole.contains(&0.0) && whole.iter().any(|factor| *factor > 1.0));
    for first in 0..6 {
        assert_eq!(noise.skip(first).factors(6 - first, 7), whole[first * 7..], "{first}");
    }
}

fn given(text: &str) -> Result<std::sync::Arc<dyn Task>, String> {
    let specs: Vec<TaskSpec> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    build(&specs, &FACTS).map_err(|error| error.to_string().replace("model configuration: ", ""))
}

#[test]
fn several_tasks_have_names_of_their_own() {
    let task = given(
        r#"[{"kind": "class", "weight": 2}, {"kind": "segmentation", "name": "parts", "outputs": 5, "head": "linear"},
            {"kind": "class", "name": "colour", "tap": "mean"}]"#,
    )
    .unwrap();
    assert_eq!(task.reads(), [Tap::Cls, Tap::Patches, Tap::Mean]);
    let names: Vec<&str> = task.layout().entries.iter().map(|entry| &*entry.name).collect();
    assert_eq!(names[..4], ["class.fc_norm.weight", "class.fc_norm.bias", "class.head.weight", "class.head.bias"]);
    assert_eq!(names[4], "parts.norm.weight");
    assert_eq!(task.layout().get("parts.head.weight").unwrap().shape, [5, 12]);
    let figures: Vec<&str> = task.figures().iter().map(|figure| &*figure.name).collect();
    let wanted =
        ["class.loss", "class.accuracy", "parts.loss", "parts.pixel_accuracy", "colour.loss", "colour.accuracy"];
    assert_eq!(figures, wanted);
    assert_eq!((task.parts()[0].weight, task.loss_unit()), (2.0, "nat"));
}

#[test]
fn a_spec_that_does_not_fit_is_refused_in_one_line() {
    for (text, line) in [
        ("[]", "there must be at least one task, got none"),
        (r#"[{"kind": "clas"}]"#, "not a task (class, multi-label, regression, segmentation"),
        (r#"[{"kind": "class", "head": "patch"}]"#, "task class: unknown option head (its options: tap)"),
        (r#"[{"kind": "segmentation", "head": "deep"}]"#, "task segmentation: head must be one of patch, linear"),
        (r#"[{"kind": "class", "name": "a", "tap": "x"}]"#, r#"task a (class): tap must be one of cls, mean, got "x""#),
        (r#"[{"kind": "class", "outputs": 1}]"#, "task class: there must be at least 2 classes, got 1"),
        (r#"[{"kind": "segmentation", "outputs": 65535}]"#, "task segmentation: there must be 2 to 65534 classes"),
        (r#"[{"kind": "multi-label", "outputs": 0}]"#, "task multi-label: outputs must be at least 1, got 0"),
        (r#"[{"kind": "regression", "sd": [1, 0, 1]}]"#, "task regression: sd must be above 0 for every value, got 0"),
        (r#"[{"kind": "regression", "mean": [1]}]"#, "task regression: mean must have 3 numbers, got 1"),
        (r#"[{"kind": "class", "weight": 2}]"#, "the weight of the only task must be 1, got 2"),
        (r#"[{"kind": "class"}, {"kind": "class"}]"#, "tasks must have different names, got class twice"),
        (r#"[{"kind": "class"}, {"kind": "class", "name": "a.b"}]"#, "the name of a task must be of letters"),
        (
            r#"[{"kind": "class"}, {"kind": "class", "name": "a", "weight": 0}]"#,
            "task a: weight must be above 0, got 0",
        ),
    ] {
        let error = given(text).unwrap_err();
        assert!(error.starts_with(line) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn a_spec_is_read_as_it_was_written() {
    let text = r#"{"kind":"regression","name":"age","weight":0.5,"outputs":1,"loss":"mse","mean":[31.25]}"#;
    let spec: TaskSpec = serde_json::from_str(text).unwrap();
    assert_eq!(spec, serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap());
    assert_eq!((spec.name(), spec.weight, spec.outputs), ("age", 0.5, Some(1)));
    assert_eq!(
        serde_json::to_string(&TaskSpec::of(TaskChoice::default())).unwrap(),
        r#"{"kind":"class","weight":1.0}"#
    );
}

/// The segmentation head `patch` as a user would write it.
#[derive(Debug)]
struct LinearSeg {
    dim: usize,
    classes: usize,
    patch: usize,
}

impl LinearSeg {
    /// [images·L, dim] → [images·L, P·P·K].
    fn rows<T: Tape<f64, Cpu>>(
        &self,
        c: &Leaves<'_, T>,
        z: Tensor<TapShape, f64, Cpu, T>,
    ) -> Result<Tensor<(usize, usize), f64, Cpu, T>, ModelError> {
        let (images, tokens, dim) = *z.shape();
        let shape = (images * tokens, dim);
        let z = z.reshape_like(&shape).normalize::<Axis<1>>(1e-6);
        let rows = shape.0;
        let z = z * each_row(c.vector("norm.weight")?, rows) + each_row(c.vector("norm.bias")?, rows);
        Ok(z.matmul(c.matrix("head.weight")?) + each_row(c.vector("head.bias")?, rows))
    }
}

impl PlainTask for LinearSeg {
    fn reads(&self) -> Vec<Tap> {
        vec![Tap::Patches]
    }
    fn params(&self, p: &mut ParamSpec) {
        let outputs = self.patch * self.patch * self.classes;
        p.add("norm.weight", &[self.dim], Init::Ones);
        p.add("norm.bias", &[self.dim], Init::Zeros);
        p.add("head.weight", &[self.dim, outputs], Init::Xavier);
        p.add("head.bias", &[outputs], Init::Zeros);
    }
    fn total(&self, y: &Targets) -> Total {
        [y.num_known_pixels().max(1) as f64, 1.0]
    }
    fn loss(
        &self,
        c: &Leaves<'_>,
        mut z: Vec<Taped<TapShape>>,
        y: &Targets,
        n: Total,
    ) -> Result<Taped<Rank0>, ModelError> {
        let hot = one_hot_patches(y, self.patch, self.classes)?;
        let rows = self.rows(c, z.pop().ok_or_else(|| self.wrong("one tap"))?)?;
        let log_p = rows.reshape_like(&(hot.shape().0, self.classes)).log_softmax::<Axis<1>>();
        Ok((log_p * hot).sum::<Rank0, _>() / -n[0])
    }
    fn predict(&self, c: &Leaves<'_, NoneTape>, mut z: Vec<Leaf<TapShape>>) -> Result<Predictions, ModelError> {
        let rows = self.rows(c, z.pop().ok_or_else(|| self.wrong("one tap"))?)?;
        Ok(Predictions::Scores { num: rows.shape().1, values: rows.as_vec().iter().map(|v| *v as f32).collect() })
    }
    fn metrics(&self) -> Box<dyn metrics::Metrics> {
        Box::new(metrics::Accuracy::new(self.classes))
    }
}

#[test]
fn a_users_head_is_the_shipped_one() {
    let (dim, classes, patch) = (FACTS.dim, FACTS.num_classes, FACTS.patch);
    let ours = Plain::new(LinearSeg { dim, classes, patch }).unwrap();
    let shipped = TaskSpec::of(TaskChoice::by_name("segmentation").unwrap()).build(&FACTS).unwrap();
    let y = <dyn TaskKind as Registry>::entries()[3].example(&FACTS, 5, 2);
    let mut rng = tensor_rng(2, "users head");
    let values: Vec<f32> = (0..5 * 9 * dim).map(|_| normal(&mut rng) as f32).collect();
    let c: Vec<f64> = (0..shipped.layout().len).map(|_| 0.3 * normal(&mut rng)).collect();
    // [outputs, dim] is [dim, outputs] there.
    let place = shipped.layout().get("head.weight").unwrap().range();
    let outputs = place.len() / dim;
    let turned = |c: &[f64], from: usize| -> Vec<f64> {
        let mut all = c.to_vec();
        for (i, to) in all[place.clone()].iter_mut().enumerate() {
            let to_columns = place.len() / from;
            *to = c[place.start + i % to_columns * from + i / to_columns];
        }
        all
    };
    let z = [Tokens { per_image: 9, dim, values: &values }];
    let totals = shipped.totals(&y);
    assert_eq!(totals, ours.totals(&y));
    let noise = None;
    let at = shipped.evaluate(&At { c: &c, z: &z, y: &y, totals: &totals, noise }, Want::BOTH).unwrap();
    let users = ours.evaluate(&At { c: &turned(&c, dim), z: &z, y: &y, totals: &totals, noise }, Want::BOTH).unwrap();
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12 + 1e-10 * b.abs());
    assert!((at.loss - users.loss).abs() < 1e-10);
    assert!(close(&turned(&users.dc, outputs), &at.dc) && close(&users.dz[0], &at.dz[0]));
    conditions::check(&ours, &FACTS, &y.slice(0..4)).unwrap();
    // Not in halves of a grain: a total of another batch makes another loss.
    let half = At { c: &c, z: &z, y: &y, totals: &[[2.0 * totals[0][0], 1.0]], noise };
    assert!((shipped.evaluate(&half, Want::LOSS).unwrap().loss - 0.5 * at.loss).abs() < 1e-12);
}

/// Least squares on the CLS token, with a fault.
#[derive(Debug)]
struct Faulty {
    fault: &'static str,
    calls: AtomicU64,
}

impl Faulty {
    fn task(fault: &'static str) -> Plain<Self> {
        Plain::new(Faulty { fault, calls: AtomicU64::new(0) }).unwrap()
    }
}

impl PlainTask for Faulty {
    fn reads(&self) -> Vec<Tap> {
        vec![Tap::Cls]
    }
    fn params(&self, p: &mut ParamSpec) {
        p.add("w", &[FACTS.dim, FACTS.num_classes], Init::Xavier);
    }
    fn total(&self, y: &Targets) -> Total {
        [if self.fault == "no total" { 0.0 } else { y.len() as f64 }, 1.0]
    }
    fn loss(
        &self,
        c: &Leaves<'_>,
        mut z: Vec<Taped<TapShape>>,
        y: &Targets,
        n: Total,
    ) -> Result<Taped<Rank0>, ModelError> {
        let z = z.pop().ok_or_else(|| self.wrong("one tap"))?;
        let (images, _, dim) = *z.shape();
        let z = z.reshape_like(&(images, dim));
        let (z, tape) = z.split_tape();
        let values = z.as_vec();
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let z = z.put_tape(tape);
        let z = match self.fault {
            "batch norm" => z.normalize::<Axis<0>>(1e-5),
            "dropout" => z * if call % 2 == 0 { 1.0 } else { 0.9 },
            "panic" => z.reshape_like(&(images + 1, dim)),
            _ => z,
        };
        let w = c.matrix(if self.fault == "name" { "weight" } else { "w" })?;
        let weights = w.as_vec();
        let error = z.matmul(w) - targets_matrix(y)?;
        // Which of the outputs an image is matched with follows from the outputs themselves.
        let error = if self.fault == "matching" {
            let k = FACTS.num_classes;
            let score = |b: usize, o: usize| (0..dim).map(|i| values[b * dim + i] * weights[i * k + o]).sum::<f64>();
            let hot = (0..images * k).map(|i| {
                let (b, o) = (i / k, i % k);
                // Bands so narrow that every step crosses some.
                if (score(b, o) * 3000.0).floor().rem_euclid(2.0) == 0.0 { 1.0 } else { 0.0 }
            });
            error * super::plain::constant(hot.collect(), (images, k))?
        } else {
            error
        };
        Ok(error.square().sum::<Rank0, _>() / n[0])
    }
    fn predict(&self, _: &Leaves<'_, NoneTape>, _: Vec<Leaf<TapShape>>) -> Result<Predictions, ModelError> {
        Err(self.wrong("nothing"))
    }
    fn metrics(&self) -> Box<dyn metrics::Metrics> {
        Box::new(metrics::RegressionErrors::new(FACTS.num_classes))
    }
}

#[test]
fn tasks_that_break_the_conditions_are_refused_with_the_reason() {
    let mut rng = tensor_rng(2, "values");
    let values = (0..4 * FACTS.num_classes).map(|_| normal(&mut rng) as f32).collect();
    let y = Targets::Values { num: FACTS.num_classes, values };
    conditions::check(&Faulty::task("none"), &FACTS, &y).unwrap();
    for (fault, reason) in [
        ("batch norm", "couples the images of a batch"),
        ("dropout", "another function at each call"),
        ("matching", "jumps as its parameters move"),
        ("panic", "the task's own code panicked"),
        ("name", "tensor weight: the task has no matrix of this name"),
        ("no total", "must be finite and above 0"),
    ] {
        let error = conditions::check(&Faulty::task(fault), &FACTS, &y).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains('\n'), "{fault}: {error}");
    }
}

/// A task whose gradient is not that of its loss.
#[derive(Debug)]
struct Wrong(std::sync::Arc<dyn Task>);

impl Task for Wrong {
    fn reads(&self) -> &[Tap] {
        self.0.reads()
    }
    fn layout(&self) -> &crate::layout::SharedLayout {
        self.0.layout()
    }
    fn init(&self, seed: u64) -> crate::Buffer {
        self.0.init(seed)
    }
    fn loss_unit(&self) -> &'static str {
        self.0.loss_unit()
    }
    fn figures(&self) -> &[Figure] {
        self.0.figures()
    }
    fn total(&self, y: &Targets) -> Total {
        self.0.total(y)
    }
    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let mut share = self.0.evaluate(at, want)?;
        share.dz.iter_mut().flatten().for_each(|d| *d *= 1.1);
        Ok(share)
    }
    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        self.0.predict(c, z)
    }
    fn metrics(&self) -> Box<dyn metrics::Metrics> {
        self.0.metrics()
    }
}

#[test]
fn a_wrong_gradient_is_seen() {
    for spec in shipped() {
        let y = spec.kind.get().example(&FACTS, conditions::NUM_IMAGES, 3);
        let error = conditions::check(&Wrong(spec.build(&FACTS).unwrap()), &FACTS, &y).unwrap_err().to_string();
        assert!(error.contains("not the derivatives"), "{error}");
    }
}

#[test]
fn metrics_judge_what_tasks_predict() {
    for spec in shipped() {
        let task = spec.build(&FACTS).unwrap();
        let c: Vec<f64> = task.init(1).iter().map(|v| f64::from(*v)).collect();
        let mut rng = tensor_rng(3, "metrics");
        let num = task.reads()[0].tokens(FACTS.num_patches()) * FACTS.dim * 8;
        let values: Vec<f32> = (0..num).map(|_| normal(&mut rng) as f32).collect();
        let z = [Tokens { per_image: num / FACTS.dim / 8, dim: FACTS.dim, values: &values }];
        let (said, y) = (task.predict(&c, &z).unwrap(), spec.kind.get().example(&FACTS, 8, 3));
        let mut metrics = task.metrics();
        metrics.add(&said, &y).unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        assert_eq!(metrics.num_images(), 8);
        assert!(metrics.finish().iter().all(|measured| measured.value.is_finite()), "{spec:?}");
        // The figure that a task logs is that of its metrics where both have one.
        let share =
            task.evaluate(&At { c: &c, z: &z, y: &y, totals: &task.totals(&y), noise: None }, Want::LOSS).unwrap();
        if matches!(y, Targets::Classes(_) | Targets::Maps { .. }) {
            let figure = task.figures()[0].name.clone();
            let measured = metrics.finish().into_iter().find(|measured| measured.name == figure).unwrap();
            assert!((measured.value - share.figures[0]).abs() < 1e-12, "{spec:?}");
        }
    }
    let specs: Vec<TaskSpec> = shipped().into_iter().filter(|spec| spec.options.is_empty()).collect();
    let names = build(&specs, &FACTS).unwrap().metrics().finish();
    assert!(names.is_empty(), "of no images nothing is known");
}
