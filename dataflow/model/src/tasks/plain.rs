//! A task written as plain formulas: parameters by name and a loss in the operations of [`dfdx`] in f64, whose tape gives
//! both gradients. It runs on host memory, with every device.
//!
//! What to know of dfdx 0.13: a product of a 3-dimensional tensor and a matrix is a loop, so flatten first; the same
//! tensor twice in a binary operation panics (clone by `retaped`); without a tape an operation on a parameter cuts its
//! gradient off, so parameters come with one ([`Leaves`]), and [`each_row`] broadcasts a bias; `Bilinear` interpolates
//! with aligned corners, so multiply by constant matrices instead. Heads must keep the conditions of [`tasks`](super):
//! no batch norm (layer or group norm instead), no dropout of their own (the adapter drops values of the tokens where a run
//! asks for it), no state, no matching of predictions to targets that may change with c.
//! [`conditions::check`](super::conditions::check) refuses what it can see of that.

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use dfdx::prelude::{Axis, NoneTape, OwnedTape, Rank0, Tape, Tensor};
use dfdx::shapes::HasShape;
use dfdx::tensor::{AsArray, Cpu, TensorFromVec, Trace};
use dfdx::tensor_ops::{Backward, BroadcastTo};

use super::metrics::{Metrics, Unmeasured};
use super::predictions::Predictions;
use super::targets::{Targets, UNKNOWN_CLASS};
use super::task::{At, Figure, Share, Task, Tokens, Total, Want};
use crate::error::ModelError;
use crate::init;
use crate::layout::{Layout, SharedLayout};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::tap::Tap;

pub use dfdx;

thread_local! {
    /// One dfdx device a thread, for the thread's life: dropping one leaks its allocation cache.
    static DEVICE: Cpu = Cpu::default();
}

fn device() -> Cpu {
    DEVICE.with(Cpu::clone)
}

/// A tensor in f64 without a tape: a parameter, or a constant.
pub type Leaf<S> = Tensor<S, f64, Cpu>;

/// A tensor in f64 with its tape: what a gradient flows through.
pub type Taped<S> = Tensor<S, f64, Cpu, Tracing>;

/// A tensor in f64 with the tape T, or with none.
pub type Of<S, T> = Tensor<S, f64, Cpu, T>;

/// Shape of a tensor of four dimensions, as the weights of a convolution have.
pub type Shape4 = (usize, usize, usize, usize);

/// Shape `[images, tokens, dim]` of a tap.
pub type TapShape = (usize, usize, usize);

/// Initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// U(±√(6/(m + n))) for a matrix `[m, n]`; of more dimensions, m is the first and n the product of the others.
    Xavier,
    /// U(±bound).
    Uniform(f64),
    /// N(0, sd²).
    Normal(f64),
}

/// The parameters of a task, in order.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    layout: Layout,
    inits: Vec<Init>,
}

impl ParamSpec {
    /// Adds a parameter of 1 to 4 dimensions.
    pub fn add(&mut self, name: &str, shape: &[usize], init: Init) {
        self.layout.add(name, shape);
        self.inits.push(init);
    }
}

/// A parameter by its number of dimensions.
#[derive(Clone, Debug)]
enum Param {
    One(Leaf<(usize,)>),
    Two(Leaf<(usize, usize)>),
    Three(Leaf<TapShape>),
    Four(Leaf<Shape4>),
}

/// What gradients flow through.
pub type Tracing = OwnedTape<f64, Cpu>;

/// The parameters c of a task, by name: each with a tape of its own where a loss is computed ([`Tracing`]), without one
/// for predictions.
#[derive(Debug)]
pub struct Leaves<'a, T = Tracing> {
    layout: &'a Layout,
    params: &'a [Param],
    tape: PhantomData<T>,
}

impl Param {
    /// The parameters of a layout.
    fn all(layout: &Layout, c: &[f64]) -> Result<Vec<Self>, ModelError> {
        let device = device();
        let param = |entry: &crate::layout::Entry| {
            let values = c[entry.range()].to_vec();
            Ok(match entry.shape[..] {
                [a] => Param::One(device.try_tensor_from_vec(values, (a,))?),
                [a, b] => Param::Two(device.try_tensor_from_vec(values, (a, b))?),
                [a, b, c] => Param::Three(device.try_tensor_from_vec(values, (a, b, c))?),
                [a, b, c, d] => Param::Four(device.try_tensor_from_vec(values, (a, b, c, d))?),
                _ => return Err(dimensions(&entry.name, &entry.shape)),
            })
        };
        layout.entries.iter().map(param).collect()
    }
}

impl<T: Tape<f64, Cpu>> Leaves<'_, T> {
    fn get(&self, name: &str, dimensions: &'static str) -> Result<&Param, ModelError> {
        let place = self.layout.entries.iter().position(|entry| entry.name == name);
        place.map(|place| &self.params[place]).ok_or_else(|| unknown(name, dimensions))
    }

    /// The parameter `[n]`.
    ///
    /// # Errors
    /// When there is none of that name and number of dimensions.
    pub fn vector(&self, name: &str) -> Result<Of<(usize,), T>, ModelError> {
        match self.get(name, "vector")? {
            Param::One(param) => Ok(param.retaped()),
            _ => Err(unknown(name, "vector")),
        }
    }

    /// The parameter `[m, n]`.
    ///
    /// # Errors
    /// As [`Leaves::vector`].
    pub fn matrix(&self, name: &str) -> Result<Of<(usize, usize), T>, ModelError> {
        match self.get(name, "matrix")? {
            Param::Two(param) => Ok(param.retaped()),
            _ => Err(unknown(name, "matrix")),
        }
    }

    /// The parameter of three dimensions.
    ///
    /// # Errors
    /// As [`Leaves::vector`].
    pub fn tensor3(&self, name: &str) -> Result<Of<TapShape, T>, ModelError> {
        match self.get(name, "tensor of three dimensions")? {
            Param::Three(param) => Ok(param.retaped()),
            _ => Err(unknown(name, "tensor of three dimensions")),
        }
    }

    /// The parameter of four dimensions.
    ///
    /// # Errors
    /// As [`Leaves::vector`].
    pub fn tensor4(&self, name: &str) -> Result<Of<Shape4, T>, ModelError> {
        match self.get(name, "tensor of four dimensions")? {
            Param::Four(param) => Ok(param.retaped()),
            _ => Err(unknown(name, "tensor of four dimensions")),
        }
    }
}

fn unknown(name: &str, what: &str) -> ModelError {
    ModelError::Tensor { name: name.to_owned(), problem: format!("the task has no {what} of this name") }
}

fn dimensions(name: &str, shape: &[usize]) -> ModelError {
    let problem = format!("a parameter must have 1 to 4 dimensions of at least 1, got {shape:?}");
    ModelError::Tensor { name: name.to_owned(), problem }
}

/// A task as plain formulas. [`Plain`] makes a [`Task`] of it.
///
/// ```
/// use mlomae_model::ModelError;
/// use mlomae_model::tap::Tap;
/// use mlomae_model::tasks::metrics::{Metrics, RegressionErrors};
/// use mlomae_model::tasks::plain::dfdx::prelude::*;
/// use mlomae_model::tasks::plain::{Init, Leaf, Leaves, ParamSpec, PlainTask, TapShape, Taped, targets_matrix};
/// use mlomae_model::tasks::{Predictions, Targets, Total};
///
/// /// Numbers of an image by least squares on its CLS token.
/// #[derive(Debug)]
/// struct LeastSquares {
///     dim: usize,
///     num: usize,
/// }
///
/// impl PlainTask for LeastSquares {
///     fn reads(&self) -> Vec<Tap> {
///         vec![Tap::Cls]
///     }
///     fn params(&self, p: &mut ParamSpec) {
///         p.add("head.weight", &[self.dim, self.num], Init::Xavier);
///     }
///     fn total(&self, y: &Targets) -> Total {
///         [y.len().max(1) as f64, 1.0]
///     }
///     fn loss(
///         &self,
///         c: &Leaves<'_>,
///         z: Vec<Taped<TapShape>>,
///         y: &Targets,
///         n: Total,
///     ) -> Result<Taped<Rank0>, ModelError> {
///         let [z] = <[_; 1]>::try_from(z).map_err(|_| self.wrong("one tap"))?;
///         let (images, _, dim) = *z.shape();
///         let error = z.reshape_like(&(images, dim)).matmul(c.matrix("head.weight")?) - targets_matrix(y)?;
///         Ok(error.square().sum::<Rank0, _>() / n[0])
///     }
///     fn predict(&self, c: &Leaves<'_, NoneTape>, z: Vec<Leaf<TapShape>>) -> Result<Predictions, ModelError> {
///         let [z] = <[_; 1]>::try_from(z).map_err(|_| self.wrong("one tap"))?;
///         let (images, _, dim) = *z.shape();
///         let values = z.reshape_like(&(images, dim)).matmul(c.matrix("head.weight")?).as_vec();
///         Ok(Predictions::Values { num: self.num, values: values.iter().map(|v| *v as f32).collect() })
///     }
///     fn metrics(&self) -> Box<dyn Metrics> {
///         Box::new(RegressionErrors::new(self.num))
///     }
/// }
/// ```
pub trait PlainTask: Send + Sync + fmt::Debug + 'static {
    /// The taps that the head reads, at least one.
    fn reads(&self) -> Vec<Tap>;

    /// Adds the parameters c.
    fn params(&self, p: &mut ParamSpec);

    /// As [`Task::total`].
    fn total(&self, y: &Targets) -> Total;

    /// The loss of some images of a batch, divided by the total `n` of the whole batch. `z` has the tokens of each tap.
    ///
    /// # Errors
    /// When targets are not those of the task.
    fn loss(&self, c: &Leaves<'_>, z: Vec<Taped<TapShape>>, y: &Targets, n: Total) -> Result<Taped<Rank0>, ModelError>;

    /// As [`Task::predict`].
    ///
    /// # Errors
    /// As [`Task::predict`].
    fn predict(&self, c: &Leaves<'_, NoneTape>, z: Vec<Leaf<TapShape>>) -> Result<Predictions, ModelError>;

    /// As [`Task::metrics`].
    fn metrics(&self) -> Box<dyn Metrics> {
        Box::new(Unmeasured::default())
    }

    /// The unit of the loss in the logs.
    fn loss_unit(&self) -> &'static str {
        "nat"
    }

    /// The numbers logged beside the loss.
    fn figures(&self) -> Vec<Figure> {
        Vec::new()
    }

    /// The values of [`PlainTask::figures`] for some images, divided by the total `n` of the whole batch.
    ///
    /// # Errors
    /// As [`PlainTask::loss`].
    fn measure(
        &self,
        _c: &Leaves<'_, NoneTape>,
        _z: Vec<Leaf<TapShape>>,
        _y: &Targets,
        _n: Total,
    ) -> Result<Vec<f64>, ModelError> {
        Ok(Vec::new())
    }

    /// The error of a task that needs `needed`.
    fn wrong(&self, needed: &str) -> ModelError {
        ModelError::Targets { problem: format!("the task needs {needed}") }
    }
}

/// A [`PlainTask`] as a [`Task`].
///
/// Where a run has dropout, values of the tokens are dropped before the head reads them.
#[derive(Debug)]
pub struct Plain<T> {
    task: T,
    reads: Vec<Tap>,
    layout: SharedLayout,
    inits: Vec<Init>,
    figures: Vec<Figure>,
}

/// Products of dfdx would take all threads of the pool that calls them: each is one thread's own here, so that threads
/// have grains to work on and sums one order.
fn keep_products_on_their_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| gemm_common::gemm::set_threading_threshold(usize::MAX));
}

impl<T: PlainTask> Plain<T> {
    /// Lays the parameters out.
    ///
    /// # Errors
    /// When there is no tap, or a parameter has no shape that it can have or the name of another.
    pub fn new(task: T) -> Result<Self, ModelError> {
        keep_products_on_their_thread();
        let mut spec = ParamSpec { layout: Layout::new(Level::Finetune), inits: Vec::new() };
        task.params(&mut spec);
        for (i, entry) in spec.layout.entries.iter().enumerate() {
            if entry.len == 0 || !(1..=4).contains(&entry.shape.len()) {
                return Err(dimensions(&entry.name, &entry.shape));
            }
            if spec.layout.entries[..i].iter().any(|other| other.name == entry.name) {
                let problem = "two parameters have this name".to_owned();
                return Err(ModelError::Tensor { name: entry.name.clone(), problem });
            }
        }
        let (reads, figures) = (task.reads(), task.figures());
        if reads.is_empty() {
            return Err(ModelError::Config("a head must read at least one tap, got none".to_owned()));
        }
        Ok(Plain { task, reads, layout: spec.layout.into(), inits: spec.inits, figures })
    }

    /// The task.
    #[must_use]
    pub const fn task(&self) -> &T {
        &self.task
    }
}

fn leaf(z: &Tokens<'_>, factors: Option<&[f32]>) -> Result<Leaf<TapShape>, ModelError> {
    let mut values: Vec<f64> = z.values.iter().map(|v| f64::from(*v)).collect();
    if let Some(factors) = factors {
        values.iter_mut().zip(factors).for_each(|(v, factor)| *v *= f64::from(*factor));
    }
    Ok(device().try_tensor_from_vec(values, (z.images(), z.per_image, z.dim))?)
}

/// What `work` returns; a panic in it as an error.
fn caught<R>(work: impl FnOnce() -> Result<R, ModelError>) -> Result<R, ModelError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("without a message").replace('\n', " ");
        Err(ModelError::Targets { problem: format!("the task's own code panicked: {text}") })
    })
}

impl<T: PlainTask> Task for Plain<T> {
    fn reads(&self) -> &[Tap] {
        &self.reads
    }

    fn layout(&self) -> &SharedLayout {
        &self.layout
    }

    fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        for (entry, kind) in self.layout.entries.iter().zip(&self.inits) {
            let (slot, mut rng) = (&mut values[entry.range()], init::tensor_rng(seed, &entry.name));
            match *kind {
                Init::Zeros => {}
                Init::Ones => slot.fill(1.0),
                Init::Xavier => init::xavier_uniform(slot, entry.len / entry.shape[0], entry.shape[0], &mut rng),
                Init::Uniform(bound) => init::symmetric(slot, bound, &mut rng),
                Init::Normal(sd) => init::normals(slot, sd, &mut rng),
            }
        }
        Buffer::from_vec(values)
    }

    fn loss_unit(&self) -> &'static str {
        self.task.loss_unit()
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn total(&self, y: &Targets) -> Total {
        self.task.total(y)
    }

    fn evaluate(&self, at: &At<'_>, want: Want) -> Result<Share, ModelError> {
        let factors: Vec<Option<Vec<f32>>> =
            at.z.iter().map(|z| at.noise.map(|noise| noise.factors(z.images(), z.per_image * z.dim))).collect();
        caught(|| {
            let params = &Param::all(&self.layout, at.c)?;
            let c = Leaves { layout: &self.layout, params, tape: PhantomData };
            let leaves = at.z.iter().zip(&factors).map(|(z, factors)| leaf(z, factors.as_deref()));
            let z: Vec<Leaf<TapShape>> = leaves.collect::<Result<_, _>>()?;
            let figures = if self.figures.is_empty() {
                Vec::new()
            } else {
                let c = Leaves { layout: &self.layout, params, tape: PhantomData };
                self.task.measure(&c, z.clone(), at.y, at.total())?
            };
            let loss = self.task.loss(&c, z.iter().map(Trace::leaky_trace).collect(), at.y, at.total())?;
            let mut share = Share { loss: loss.array(), figures, ..Share::default() };
            if want == Want::LOSS {
                return Ok(share);
            }
            let mut gradients = loss.try_backward()?;
            if want.dc {
                share.dc = Vec::with_capacity(self.layout.len);
                for param in params {
                    share.dc.extend_from_slice(match param {
                        Param::One(param) => gradients.get_or_alloc_mut(param)?,
                        Param::Two(param) => gradients.get_or_alloc_mut(param)?,
                        Param::Three(param) => gradients.get_or_alloc_mut(param)?,
                        Param::Four(param) => gradients.get_or_alloc_mut(param)?,
                    });
                }
            }
            if want.dz {
                for (z, factors) in z.iter().zip(&factors) {
                    let mut dz = gradients.get_or_alloc_mut(z)?.to_vec();
                    if let Some(factors) = factors {
                        dz.iter_mut().zip(factors).for_each(|(d, factor)| *d *= f64::from(*factor));
                    }
                    share.dz.push(dz);
                }
            }
            Ok(share)
        })
    }

    fn predict(&self, c: &[f64], z: &[Tokens<'_>]) -> Result<Predictions, ModelError> {
        caught(|| {
            let z = z.iter().map(|z| leaf(z, None)).collect::<Result<_, _>>()?;
            let params = &Param::all(&self.layout, c)?;
            self.task.predict(&Leaves { layout: &self.layout, params, tape: PhantomData }, z)
        })
    }

    fn metrics(&self) -> Box<dyn Metrics> {
        self.task.metrics()
    }
}

/// A vector `[n]` as each of `rows` rows `[rows, n]`, for biases and gains.
#[must_use]
pub fn each_row<T: Tape<f64, Cpu>>(vector: Of<(usize,), T>, rows: usize) -> Of<(usize, usize), T> {
    let shape = (rows, vector.shape().0);
    vector.broadcast_like::<_, Axis<0>>(&shape)
}

/// A constant of these values.
///
/// # Errors
/// When the values are not as many as the shape has.
pub fn constant(values: Vec<f64>, shape: (usize, usize)) -> Result<Leaf<(usize, usize)>, ModelError> {
    if values.len() != shape.0 * shape.1 {
        let problem = format!("a constant of shape {shape:?} must have that many values, got {}", values.len());
        return Err(ModelError::Targets { problem });
    }
    Ok(device().try_tensor_from_vec(values, shape)?)
}

/// [`Targets::Values`] as a constant `[images, num]`.
///
/// # Errors
/// When targets are of another kind.
pub fn targets_matrix(y: &Targets) -> Result<Leaf<(usize, usize)>, ModelError> {
    let Targets::Values { num, values } = y else { return Err(super::task::wrong_kind("values", y)) };
    constant(values.iter().map(|v| f64::from(*v)).collect(), (y.len(), *num))
}

/// [`Targets::Maps`] as a constant of a row for each pixel, `[images·L·P·P, classes]`: patch by patch, and row by row in
/// it. 1 for the class of the pixel, else 0; pixels whose class is unknown have a row of zeros.
///
/// # Errors
/// When targets are of another kind, `patch` does not divide their side, or a class is not below `classes`.
pub fn one_hot_patches(y: &Targets, patch: usize, classes: usize) -> Result<Leaf<(usize, usize)>, ModelError> {
    let Targets::Maps { side, classes: map } = y else { return Err(super::task::wrong_kind("class maps", y)) };
    let refused = |problem: String| Err(ModelError::Targets { problem });
    if patch == 0 || !side.is_multiple_of(patch) {
        return refused(format!("patches must divide the side {side} of class maps, got {patch}"));
    }
    let (side, grid) = (*side, side / patch);
    let mut rows = vec![0.0; map.len() * classes];
    for (row, hot) in rows.chunks_exact_mut(classes).enumerate() {
        let (place, pixel) = (row / (patch * patch), row % (patch * patch));
        let (image, place) = (place / (grid * grid), place % (grid * grid));
        let top = place / grid * patch + pixel / patch;
        let left = place % grid * patch + pixel % patch;
        let class = map[(image * side + top) * side + left];
        match usize::from(class) {
            class if class < classes => hot[class] = 1.0,
            _ if class == UNKNOWN_CLASS => {}
            class => return refused(format!("the class of a pixel must be in 0..{classes}, got {class}")),
        }
    }
    constant(rows, (map.len(), classes))
}
