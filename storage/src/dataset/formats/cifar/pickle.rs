//! A pickle machine that executes nothing: it builds dicts, lists, tuples, strings, bytes and numpy arrays of u8, and
//! refuses every other global by name. Protocols 0 to 4, as far as the CIFAR files of Python 2 and 3 and numpy need
//! them.

use std::ops::Range;

/// Instructions of a pickle at most: those of the largest CIFAR file are some hundred thousand. A byte of the input can
/// make a value of fifty.
const MAX_STEPS: usize = 1 << 23;

/// A value; containers hold handles into the [`Pickle`] that made it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    /// Bytes within the input.
    Slice(Range<usize>),
    /// Bytes that had to be made.
    Bytes(Vec<u8>),
    Tuple(Vec<Handle>),
    List(Vec<Handle>),
    Dict(Vec<(Handle, Handle)>),
    Global(Global),
    Dtype(String),
    /// An array of u8: its shape and the handle of its bytes.
    Array(Option<(Vec<usize>, Handle)>),
}

/// Index of a value.
pub(crate) type Handle = usize;

/// The globals that may be named, and what stands in for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    Reconstruct,
    NdArray,
    Dtype,
    Encode,
}

/// The outcome of running a pickle.
pub(crate) struct Pickle<'a> {
    input: &'a [u8],
    values: Vec<Value>,
    root: Handle,
}

impl<'a> Pickle<'a> {
    /// Runs a pickle to its end.
    pub fn load(input: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine {
            input,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            made: 0,
        };
        let root = machine.run().map_err(|reason| format!("{reason} at byte {}", machine.at))?;
        Ok(Self { input, values: machine.values, root })
    }

    /// The value that was pickled.
    pub fn root(&self) -> &Value {
        &self.values[self.root]
    }

    /// The value of a handle.
    pub fn get(&self, handle: Handle) -> &Value {
        &self.values[handle]
    }

    /// Bytes or text as bytes.
    pub fn bytes<'b>(&'b self, value: &'b Value) -> Option<&'b [u8]> {
        bytes_of(self.input, value)
    }

    /// The value of a key of a dict; keys are bytes or text. The last one wins, as in Python.
    pub fn item(&self, dict: &Value, key: &str) -> Option<&Value> {
        let Value::Dict(pairs) = dict else {
            return None;
        };
        pairs
            .iter()
            .rev()
            .find(|(name, _)| self.bytes(self.get(*name)) == Some(key.as_bytes()))
            .map(|(_, value)| self.get(*value))
    }

    /// The keys of a dict that are bytes or text.
    pub fn keys(&self, dict: &Value) -> Vec<String> {
        let Value::Dict(pairs) = dict else {
            return Vec::new();
        };
        pairs
            .iter()
            .filter_map(|(name, _)| self.bytes(self.get(*name)))
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect()
    }

    /// A list's or tuple's values.
    pub fn list(&self, value: &Value) -> Option<impl ExactSizeIterator<Item = &Value>> {
        match value {
            Value::List(items) | Value::Tuple(items) => Some(items.iter().map(|&item| self.get(item))),
            _ => None,
        }
    }

    /// Shape and values of an array of u8, whose length is checked.
    pub fn array<'b>(&'b self, value: &'b Value) -> Option<(&'b [usize], &'b [u8])> {
        let Value::Array(Some((shape, data))) = value else {
            return None;
        };
        Some((shape, self.bytes(self.get(*data))?))
    }
}

fn bytes_of<'a>(input: &'a [u8], value: &'a Value) -> Option<&'a [u8]> {
    match value {
        Value::Slice(range) => input.get(range.clone()),
        Value::Bytes(bytes) => Some(bytes),
        Value::Str(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Every instruction makes at most one value or moves existing ones, so that memory is bounded by the input's length.
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Handle>,
    marks: Vec<usize>,
    memo: Vec<Option<Handle>>,
    /// Bytes encoded so far: no more than the input has, or one text is encoded again and again to fill the memory.
    made: usize,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Step<Handle> {
        for _ in 0..MAX_STEPS {
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
        Err(format!("more than {MAX_STEPS} pickle instructions"))
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            0x80 => match self.take(1)?[0] {
                0..=4 => {}
                version => return Err(format!("pickle protocol must be 0 to 4, not {version}")),
            },
            // FRAME is a hint for readers of streams.
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(*self.stack.last().ok_or("empty stack")?),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'I' => {
                let line = self.line()?;
                let value = match line {
                    b"00" => Value::Bool(false),
                    b"01" => Value::Bool(true),
                    _ => Value::Int(parse(line)?),
                };
                self.push(value);
            }
            b'L' => {
                let line = self.line()?;
                let value = parse(line.strip_suffix(b"L").unwrap_or(line))?;
                self.push(Value::Int(value));
            }
            b'J' => {
                let value = self.take(4)?;
                let value = i32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                self.push(Value::Int(value.into()));
            }
            b'K' => self.push_uint(1)?,
            b'M' => self.push_uint(2)?,
            0x8a => self.push_long(1)?,
            0x8b => self.push_long(4)?,
            b'F' => {
                let value = parse(self.line()?)?;
                self.push(Value::Float(value));
            }
            b'G' => {
                let bytes = self.take(8)?.try_into().map_err(|_| "truncated")?;
                self.push(Value::Float(f64::from_be_bytes(bytes)));
            }
            b'U' | b'C' => self.push_slice(1)?,
            b'T' | b'B' => self.push_slice(4)?,
            0x8e => self.push_slice(8)?,
            0x8c => self.push_text(1)?,
            b'X' => self.push_text(4)?,
            0x8d => self.push_text(8)?,
            b'S' => {
                let value = unquote(self.line()?).ok_or("malformed string")?;
                self.push(Value::Bytes(value));
            }
            b'V' => {
                let value = raw_unicode(self.line()?).ok_or("malformed unicode string")?;
                self.push(Value::Str(value));
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let from = self.depth(usize::from(opcode - 0x84))?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            b']' => self.push(Value::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items));
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let pairs = pairs(&self.pop_mark()?)?;
                self.push(Value::Dict(pairs));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let from = self.depth(2)?;
                let items = self.stack.split_off(from);
                self.extend_dict(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }
            b'p' | b'q' | b'r' | 0x94 => self.remember(opcode)?,
            b'g' | b'h' | b'j' => {
                let key = self.memo_key(opcode)?;
                let value =
                    self.memo.get(key).copied().flatten().ok_or_else(|| format!("nothing remembered as {key}"))?;
                self.stack.push(value);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = global(module, name)?;
                self.push(Value::Global(global));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text =
                    |handle: Handle| bytes_of(self.input, &self.values[handle]).ok_or("a global's name is no text");
                let global = global(text(module)?, text(name)?)?;
                self.push(Value::Global(global));
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => {
                return Err(format!("refused pickle instruction {:?}", char::from(other)));
            }
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.input.len()).ok_or("truncated")?;
        let taken = &self.input[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Up to the next line feed, which is skipped.
    fn line(&mut self) -> Step<&'a [u8]> {
        let rest = &self.input[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("truncated")?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    fn uint(&mut self, width: usize) -> Step<usize> {
        let bytes = self.take(width)?;
        let value = bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).map_err(|_| "length beyond the address space".to_owned())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn push_uint(&mut self, width: usize) -> Step<()> {
        let value = self.uint(width)? as i64;
        self.push(Value::Int(value));
        Ok(())
    }

    fn push_long(&mut self, width: usize) -> Step<()> {
        let len = self.uint(width)?;
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(format!("integers must have at most 8 bytes, not {len}"));
        }
        let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xFF } else { 0 };
        let mut wide = [sign; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn push_slice(&mut self, width: usize) -> Step<()> {
        let len = self.uint(width)?;
        self.take(len)?;
        self.push(Value::Slice(self.at - len..self.at));
        Ok(())
    }

    fn push_text(&mut self, width: usize) -> Step<()> {
        let len = self.uint(width)?;
        let text = std::str::from_utf8(self.take(len)?).map_err(|e| format!("text is not utf-8: {e}"))?;
        self.push(Value::Str(text.to_owned()));
        Ok(())
    }

    /// Stack position of the `count`-th value from the top, not below the last mark.
    fn depth(&self, count: usize) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.len().checked_sub(count).filter(|&from| from >= floor).ok_or_else(|| "empty stack".to_owned())
    }

    fn pop(&mut self) -> Step<Handle> {
        self.depth(1)?;
        self.stack.pop().ok_or_else(|| "empty stack".to_owned())
    }

    fn pop_mark(&mut self) -> Step<Vec<Handle>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn extend_list(&mut self, items: Vec<Handle>) -> Step<()> {
        let target = self.stack[self.depth(1)?];
        let Value::List(list) = &mut self.values[target] else {
            return Err("appending to what is no list".to_owned());
        };
        list.extend(items);
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Handle]) -> Step<()> {
        let target = self.stack[self.depth(1)?];
        let Value::Dict(dict) = &mut self.values[target] else {
            return Err("setting an item of what is no dict".to_owned());
        };
        dict.extend(pairs(items)?);
        Ok(())
    }

    fn memo_key(&mut self, opcode: u8) -> Step<usize> {
        match opcode {
            b'p' | b'g' => parse(self.line()?),
            b'q' | b'h' => self.uint(1),
            b'r' | b'j' => self.uint(4),
            _ => Ok(self.memo.len()),
        }
    }

    fn remember(&mut self, opcode: u8) -> Step<()> {
        let key = self.memo_key(opcode)?;
        let value = self.stack[self.depth(1)?];
        // Writers number from 0 or 1 without gaps; a larger number could only waste memory.
        if key > self.input.len() {
            return Err(format!("unbelievable memo number {key}"));
        }
        if key >= self.memo.len() {
            self.memo.resize(key + 1, None);
        }
        self.memo[key] = Some(value);
        Ok(())
    }

    fn bytes(&self, handle: Handle) -> Option<&[u8]> {
        bytes_of(self.input, &self.values[handle])
    }

    /// Calls of the four known globals.
    fn reduce(&mut self) -> Step<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Value::Tuple(args) = &self.values[args] else {
            return Err("arguments of a call are no tuple".to_owned());
        };
        let value = match (&self.values[callee], args.as_slice()) {
            (Value::Global(Global::Reconstruct), [class, ..])
                if self.values[*class] == Value::Global(Global::NdArray) =>
            {
                Value::Array(None)
            }
            (Value::Global(Global::Dtype), [name, ..]) => {
                let name =
                    self.bytes(*name).filter(|name| name.len() <= 16).ok_or("a dtype's name is no short text")?;
                Value::Dtype(String::from_utf8_lossy(name).into_owned())
            }
            (Value::Global(Global::Encode), [text, encoding]) => {
                let Value::Str(text) = &self.values[*text] else {
                    return Err("_codecs.encode of what is no text".to_owned());
                };
                if !matches!(self.bytes(*encoding), Some(b"latin1" | b"latin-1")) {
                    return Err("_codecs.encode to another encoding than latin1".to_owned());
                }
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                let bytes = bytes.ok_or("text beyond latin1")?;
                self.made += bytes.len();
                if self.made > self.input.len() {
                    return Err("encodes more bytes than the pickle has".to_owned());
                }
                Value::Bytes(bytes)
            }
            (other, args) => {
                return Err(format!("refused call of {other:?} with {} arguments", args.len()));
            }
        };
        self.push(value);
        Ok(())
    }

    /// Fills in the state of an array or a dtype.
    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let target = self.stack[self.depth(1)?];
        match (&self.values[target], &self.values[state]) {
            // (version, byte order, ...): one byte has no order.
            (Value::Dtype(_), Value::Tuple(_)) => Ok(()),
            (Value::Array(None), Value::Tuple(state)) => {
                let &[_version, shape, dtype, fortran, data] = state.as_slice() else {
                    return Err(format!("array state must have 5 parts, not {}", state.len()));
                };
                let Value::Tuple(dims) = &self.values[shape] else {
                    return Err("an array's shape is no tuple".to_owned());
                };
                if dims.len() > 4 {
                    return Err(format!("arrays must have at most 4 axes, not {}", dims.len()));
                }
                let dims = dims.iter().map(|&dim| match self.values[dim] {
                    Value::Int(dim) => usize::try_from(dim).ok(),
                    _ => None,
                });
                let dims = dims.collect::<Option<Vec<_>>>().ok_or("an array's shape is no tuple of sizes")?;
                match &self.values[dtype] {
                    Value::Dtype(name) if name == "u1" || name == "|u1" || name == "uint8" => {}
                    other => return Err(format!("arrays must be of type u1, not {other:?}")),
                }
                if !matches!(self.values[fortran], Value::Bool(false) | Value::Int(0)) && dims.len() > 1 {
                    return Err("arrays must be in C order, not in Fortran order".to_owned());
                }
                let len = self.bytes(data).ok_or("an array's data are no bytes")?.len();
                if dims.iter().try_fold(1_usize, |size, &dim| size.checked_mul(dim)) != Some(len) {
                    return Err(format!("array of shape {dims:?} has {len} values"));
                }
                self.values[target] = Value::Array(Some((dims, data)));
                Ok(())
            }
            _ => Err("refused state of an object".to_owned()),
        }
    }
}

fn global(module: &[u8], name: &[u8]) -> Step<Global> {
    match (module, name) {
        (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => Ok(Global::Reconstruct),
        (b"numpy", b"ndarray") => Ok(Global::NdArray),
        (b"numpy", b"dtype") => Ok(Global::Dtype),
        (b"_codecs", b"encode") => Ok(Global::Encode),
        _ => {
            let text = |bytes| String::from_utf8_lossy(bytes).chars().take(80).collect::<String>();
            let allowed = "numpy.core.multiarray._reconstruct, numpy.ndarray, numpy.dtype and _codecs.encode";
            Err(format!("a pickle may only name {allowed}, not {:?}", format!("{}.{}", text(module), text(name))))
        }
    }
}

fn pairs(items: &[Handle]) -> Step<Vec<(Handle, Handle)>> {
    if items.len().is_multiple_of(2) {
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    } else {
        Err("a key without a value".to_owned())
    }
}

fn parse<T: std::str::FromStr>(line: &[u8]) -> Step<T> {
    let text = std::str::from_utf8(line).ok().map(str::trim);
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("malformed number {:?}", String::from_utf8_lossy(line)))
}

/// A quoted string of protocol 0 with Python's escapes.
fn unquote(line: &[u8]) -> Option<Vec<u8>> {
    let inner = match line {
        [first @ (b'\'' | b'"'), inner @ .., last] if first == last => inner,
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => hex(&mut rest, 2).and_then(|value| u8::try_from(value).ok())?,
            quoted @ (b'\\' | b'\'' | b'"') => quoted,
            _ => return None,
        });
    }
    Some(bytes)
}

/// Text of protocol 0: latin1 with escapes `\u` of four and `\U` of eight hexadecimal digits.
fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        let digits = match (byte, rest.peek()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(byte));
                continue;
            }
        };
        rest.next();
        text.push(char::from_u32(hex(&mut rest, digits)?)?);
    }
    Some(text)
}

fn hex(digits: &mut impl Iterator<Item = u8>, count: usize) -> Option<u32> {
    (0..count).try_fold(0, |value, _| Some(value * 16 + char::from(digits.next()?).to_digit(16)?))
}
