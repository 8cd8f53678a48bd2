//! CUDA graphs: a piece of work that is enqueued again and again is recorded once and then launched as a whole, which
//! takes the host a tenth of the time.
//!
//! A graph keeps the addresses that it was captured with. So it has a pool of its own, whose blocks nobody else gets;
//! its inputs are copied into it before each launch, and its outputs out of it afterwards. Work is captured on the
//! second call with the same lengths: the first, enqueued as ever, fills the pool, so that no memory is allocated in a
//! capture, and lets cuBLASLt choose its algorithms.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::result as driver;
use cudarc::driver::sys;

use crate::error::DeviceError;
use crate::gpu::Gpu;
use crate::memory::{Mem, Pool};
use crate::stream::Stream;

/// An input of a graph.
#[derive(Clone, Debug)]
pub enum Held {
    /// Values.
    F32(Mem<f32>),
    /// Indices.
    U32(Mem<u32>),
}

impl Held {
    fn len(&self) -> usize {
        match self {
            Held::F32(values) => values.len(),
            Held::U32(values) => values.len(),
        }
    }

    /// The values.
    ///
    /// # Panics
    /// If it holds indices.
    #[must_use]
    pub fn f32(&self) -> &Mem<f32> {
        match self {
            Held::F32(values) => values,
            Held::U32(_) => panic!("an input of indices is read as values"),
        }
    }

    /// The indices.
    ///
    /// # Panics
    /// If it holds values.
    #[must_use]
    pub fn u32(&self) -> &Mem<u32> {
        match self {
            Held::U32(values) => values,
            Held::F32(_) => panic!("an input of values is read as indices"),
        }
    }
}

impl From<&Mem<f32>> for Held {
    fn from(values: &Mem<f32>) -> Self {
        Held::F32(values.clone())
    }
}

impl From<&Mem<u32>> for Held {
    fn from(values: &Mem<u32>) -> Self {
        Held::U32(values.clone())
    }
}

/// How a piece of work was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Enqueued piece by piece.
    Eager,
    /// Enqueued into a graph, which was then launched.
    Captured,
    /// Launched as a graph; the work itself was not called.
    Replayed,
}

/// Memory of graphs. Graphs that share it must always be launched in the order of their capture.
#[derive(Clone, Debug)]
pub struct GraphPool(Arc<Pool>);

/// A piece of work that is captured once it repeats.
#[derive(Debug)]
pub struct Graph {
    pool: GraphPool,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Cold,
    /// It has run with inputs of these lengths.
    Warm(Vec<usize>),
    Ready(Captured),
}

struct Captured {
    gpu: Gpu,
    executable: sys::CUgraphExec,
    inputs: Vec<Held>,
    outputs: Vec<Mem<f32>>,
    /// Operations of its products.
    flops: u64,
}

// SAFETY: an executable graph may be launched and destroyed by any thread, by one at a time.
unsafe impl Send for Captured {}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Captured({} inputs, {} outputs)", self.inputs.len(), self.outputs.len())
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: nobody else has it. A failure means a lost device.
            let _ = unsafe { driver::graph::exec_destroy(self.executable) };
        }
    }
}

impl Graph {
    /// Work that has not run yet.
    #[must_use]
    pub const fn new(pool: GraphPool) -> Self {
        Graph { pool, phase: Phase::Cold }
    }

    /// Forgets what was captured.
    pub fn reset(&mut self) {
        self.phase = Phase::Cold;
    }

    /// Whether the work is captured, for inputs of the lengths it had then.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready(_))
    }
}

fn lengths(inputs: &[Held]) -> Vec<usize> {
    inputs.iter().map(Held::len).collect()
}

impl Stream {
    /// Memory for graphs of this stream.
    #[must_use]
    pub fn graph_pool(&self) -> GraphPool {
        GraphPool(Pool::new(self.gpu()))
    }

    /// Runs `work`, by a graph once it repeats. `work` may only enqueue: it must not wait, upload or download, and must
    /// reach vectors that change through its inputs alone. Returns its outputs, which nobody else writes.
    pub fn steady(
        &self,
        graph: &mut Graph,
        inputs: &[Held],
        work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>,
    ) -> (Vec<Mem<f32>>, Run) {
        let run = match &graph.phase {
            Phase::Ready(captured) if lengths(&captured.inputs) == lengths(inputs) => Run::Replayed,
            Phase::Warm(known) if *known == lengths(inputs) => Run::Captured,
            Phase::Cold | Phase::Warm(_) | Phase::Ready(_) => Run::Eager,
        };
        if run == Run::Eager {
            graph.phase = Phase::Warm(lengths(inputs));
        }
        (self.steady_as(run, graph, inputs, work), run)
    }

    /// As [`Stream::steady`], run as the work was that came before it and that it belongs to.
    pub fn steady_as(
        &self,
        run: Run,
        graph: &mut Graph,
        inputs: &[Held],
        work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>,
    ) -> Vec<Mem<f32>> {
        match run {
            Run::Eager => self.eager(&graph.pool, inputs, work),
            Run::Captured => match self.capture(&graph.pool, inputs, work) {
                Some(captured) => {
                    let outputs = self.replay(&captured, inputs);
                    graph.phase = Phase::Ready(captured);
                    outputs
                }
                // Its failure is kept.
                None => {
                    graph.phase = Phase::Cold;
                    Vec::new()
                }
            },
            Run::Replayed => match &graph.phase {
                Phase::Ready(captured) => self.replay(captured, inputs),
                Phase::Cold | Phase::Warm(_) => panic!("a graph is replayed before it is captured"),
            },
        }
    }

    /// Vectors of the inputs' lengths.
    fn copies(&self, inputs: &[Held]) -> Vec<Held> {
        let copy = |input: &Held| match input {
            Held::F32(values) => Held::F32(self.take(values.len())),
            Held::U32(values) => Held::U32(self.take(values.len())),
        };
        inputs.iter().map(copy).collect()
    }

    fn copy_inputs(&self, copies: &[Held], inputs: &[Held]) {
        for (to, from) in copies.iter().zip(inputs) {
            match (to, from) {
                (Held::F32(to), Held::F32(from)) => self.copy(to.view(), from.view()),
                (Held::U32(to), Held::U32(from)) => self.copy(to.view(), from.view()),
                _ => panic!("an input of a graph has changed its type"),
            }
        }
    }

    fn copy_outputs(&self, outputs: &[Mem<f32>]) -> Vec<Mem<f32>> {
        let copy = |output: &Mem<f32>| {
            let copy = self.take(output.len());
            self.copy(copy.view(), output.view());
            copy
        };
        outputs.iter().map(copy).collect()
    }

    /// In the graph's memory, as a capture will be.
    fn eager(&self, pool: &GraphPool, inputs: &[Held], work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>) -> Vec<Mem<f32>> {
        let outer = self.swap_pool(pool.0.clone());
        let copies = self.copies(inputs);
        self.copy_inputs(&copies, inputs);
        let outputs = work(&copies);
        self.swap_pool(outer);
        self.copy_outputs(&outputs)
    }

    fn capture(
        &self,
        pool: &GraphPool,
        inputs: &[Held],
        work: impl FnOnce(&[Held]) -> Vec<Mem<f32>>,
    ) -> Option<Captured> {
        use sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED as RELAXED;
        let outer = self.swap_pool(pool.0.clone());
        let copies = self.copies(inputs);
        let failed = |error| DeviceError::driver("capturing a graph", error);
        // SAFETY: the stream is alive. Other threads may do what they like meanwhile.
        self.enqueue(|stream| unsafe { driver::stream::begin_capture(stream, RELAXED) }.map_err(failed));
        let has_begun = !self.has_failed();
        // Each launch counts them.
        let (outputs, flops) = self.flops_of(|| work(&copies));
        let mut executable = None;
        if has_begun {
            let ended = self.with_raw(|stream| {
                // SAFETY: the stream is capturing; the graph is not used after its executable is made.
                unsafe {
                    let graph = driver::stream::end_capture(stream)?;
                    let made = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                    let _ = driver::graph::destroy(graph);
                    made
                }
            });
            match ended {
                Ok(made) => executable = Some(made),
                Err(error) => self.fail(failed(error)),
            }
        }
        self.swap_pool(outer);
        let executable = executable?;
        let captured = Captured { gpu: self.gpu().clone(), executable, inputs: copies, outputs, flops };
        (!self.has_failed()).then_some(captured)
    }

    fn replay(&self, captured: &Captured, inputs: &[Held]) -> Vec<Mem<f32>> {
        self.copy_inputs(&captured.inputs, inputs);
        self.count_flops(captured.flops);
        self.enqueue(|stream| {
            // SAFETY: the executable is alive, and so is all memory that it uses: its pool keeps it.
            unsafe { driver::graph::launch(captured.executable, stream) }
                .map_err(|error| DeviceError::driver("launching a graph", error))
        });
        self.copy_outputs(&captured.outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ActView;
    use crate::product::{Matrix, Product};
    use crate::stream::{Precision, Priority};
    use crate::testing;

    /// x ↦ (relu(x·w) + x, x + x), with memory taken and given back on the way.
    fn work(stream: &Stream, inputs: &[Held]) -> Vec<Mem<f32>> {
        let (x, w) = (inputs[0].f32(), inputs[1].f32());
        let hidden = stream.take(x.len());
        let (a, b) = (Matrix::of(x.view()), Matrix::of(w.view()));
        let out = ActView::F32(hidden.view());
        stream.product(&Product { out, a, b, shape: [x.len() / 3, 3, 3], bias: None, accumulate: false });
        stream.relu(hidden.view());
        let sum = stream.take(x.len());
        stream.scale_add(sum.view(), hidden.view(), 1.0, x.view());
        drop(hidden);
        let twice = stream.take(x.len());
        stream.scale_add(twice.view(), x.view(), 1.0, x.view());
        vec![sum, twice]
    }

    #[test]
    fn a_graph_gives_what_its_work_does_and_its_results_stay() {
        let stream = Stream::new(&testing::gpu(), Precision::F32, Priority::Normal).unwrap();
        let mut graph = Graph::new(stream.graph_pool());
        let w = stream.upload(&[1.0f32, -2.0, 0.5, 0.25, 1.5, -1.0, 2.0, 0.0, 1.0]);
        let mut kept = Vec::new();
        for round in 0..5 {
            let x: Vec<f32> = (0..6).map(|i| (i * round) as f32 - 4.0).collect();
            let x = stream.upload(&x);
            let (ours, run) = stream.steady(&mut graph, &[(&x).into(), (&w).into()], |inputs| work(&stream, inputs));
            assert_eq!(stream.flops(), 2 * 2 * 3 * 3, "one product, however it was run");
            let expected = work(&stream, &[(&x).into(), (&w).into()]);
            assert_eq!(stream.flops(), 2 * 2 * 3 * 3);
            stream.wait().unwrap();
            assert_eq!(run, [Run::Eager, Run::Captured, Run::Replayed][round.min(2) as usize]);
            kept.push((ours, expected));
        }
        for (ours, expected) in kept {
            assert_eq!(ours.len(), expected.len());
            for (a, b) in ours.iter().zip(&expected) {
                assert_eq!(stream.download(a.view()).unwrap(), stream.download(b.view()).unwrap());
            }
        }
        let x = stream.upload(&[1.0f32; 9]);
        let (_, run) = stream.steady(&mut graph, &[(&x).into(), (&w).into()], |inputs| work(&stream, inputs));
        assert_eq!(run, Run::Eager, "another length");
        stream.wait().unwrap();
    }
}
