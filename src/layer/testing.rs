//! Builds tars for tests byte by byte: a regular library would refuse to write most of the cases.

const BLOCK: usize = 512;

/// A tar under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layer {
    pub bytes: Vec<u8>,
}

/// One ustar header, in which a test can overwrite every field.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub block: [u8; BLOCK],
}

impl Head {
    pub fn new(kind: u8, name: &[u8], link: &[u8], size: u64) -> Self {
        let mut head = Self { block: [0; BLOCK] };
        head.put(0, &name[..name.len().min(100)]).put(100, if kind == b'5' { b"0000755" } else { b"0000644" });
        head.put(108, b"0000000").put(116, b"0000000");
        head.put(124, format!("{size:011o}").as_bytes()).put(136, b"00000000001");
        head.block[156] = kind;
        head.put(157, &link[..link.len().min(100)]).put(257, b"ustar\x0000");
        head
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The block with the correct checksum.
    pub fn sealed(mut self) -> [u8; BLOCK] {
        self.block[148..156].copy_from_slice(b"        ");
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.block
    }
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends data and their padding.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub fn head(self, head: Head) -> Self {
        self.raw(&head.sealed())
    }

    pub fn member(self, kind: u8, name: &str, link: &str) -> Self {
        self.head(Head::new(kind, name.as_bytes(), link.as_bytes(), 0))
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.head(Head::new(b'0', name.as_bytes(), b"", data.len() as u64)).data(data.as_bytes())
    }

    pub fn dir(self, name: &str) -> Self {
        self.member(b'5', name, "")
    }

    pub fn dir_mode(self, name: &str, mode: u32) -> Self {
        let mut head = Head::new(b'5', name.as_bytes(), b"", 0);
        head.put(100, format!("{mode:07o}").as_bytes());
        self.head(head)
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.member(b'2', name, target)
    }

    pub fn hard(self, name: &str, target: &str) -> Self {
        self.member(b'1', name, target)
    }

    pub fn fifo(self, name: &str) -> Self {
        self.member(b'6', name, "")
    }

    pub fn device(self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        let mut head = Head::new(kind, name.as_bytes(), b"", 0);
        head.put(329, format!("{major:07o}").as_bytes()).put(337, format!("{minor:07o}").as_bytes());
        self.head(head)
    }

    /// Appends a PAX header for the member that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.special(b'x', &body)
    }

    /// Appends an extended header of any kind.
    pub fn special(self, kind: u8, body: &[u8]) -> Self {
        self.head(Head::new(kind, b"././@LongLink", b"", body.len() as u64)).data(body)
    }

    /// Appends the two zero blocks.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]).bytes
    }
}

/// The record `<length> key=value\n`. The length includes itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
