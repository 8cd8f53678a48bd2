//! What the headers of many images have in common.

use super::Header;

/// Size and channels of the images seen so far; unreadable ones are left to whoever decodes them.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    size: Option<(usize, usize)>,
    differs: bool,
    coloured: bool,
    seen: bool,
    /// Channels that were decided before.
    decided: Option<usize>,
    is_part: bool,
}

impl Survey {
    /// Of a dataset whose samples are wanted with `channels`; only 3 decides anything.
    pub fn new(channels: Option<usize>) -> Self {
        Self { decided: channels.filter(|channels| *channels == 3), ..Self::default() }
    }

    pub fn add(&mut self, header: Option<Header>) {
        let Some(header) = header else { return };
        let size = (header.width, header.height);
        self.differs |= *self.size.get_or_insert(size) != size;
        self.coloured |= header.channels != 1;
        self.seen = true;
    }

    /// True when no further image can change the outcome.
    pub fn is_settled(&self) -> bool {
        self.differs && (self.coloured || self.decided.is_some())
    }

    /// There are images that were not looked at: what is not settled then is not known.
    pub fn leave_out_the_rest(&mut self) {
        self.is_part = true;
    }

    /// (width, height) when all were the same.
    pub fn image_size(&self) -> Option<(usize, usize)> {
        self.size.filter(|_| !self.differs && !self.is_part)
    }

    /// 1 when all were grey, else 3.
    pub fn channels(&self) -> usize {
        let all_grey = self.seen && !self.coloured && !self.is_part;
        self.decided.unwrap_or(if all_grey { 1 } else { 3 })
    }
}
