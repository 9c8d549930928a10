//! Files in, lines out: a stream, so that memory does not grow with the input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use indicatif::ProgressBar;

use crate::enrich::LINE_BYTES_MAX;
use crate::failure::Failure;
use crate::flight::COLUMNS;
use crate::split::split;

const BUFFER_BYTES: usize = 256 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The number of the first line after the header.
pub(crate) const FIRST_LINE: u64 = 2;

type Source = Box<dyn BufRead + Send>;

/// Opens a file, decompressing it where it is gzip.
pub(crate) fn open(path: &Path) -> Result<Source, Failure> {
    let file = File::open(path).map_err(|error| Failure::file("open", path, error))?;
    decompress(file).map_err(|error| Failure::file("read", path, error))
}

/// Tells gzip by its first bytes, since standard input has no name to go by.
fn decompress(mut raw: impl Read + Send + 'static) -> io::Result<Source> {
    let mut magic = Vec::new();
    raw.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    let compressed = magic == GZIP_MAGIC;
    let raw = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(raw));
    if compressed {
        Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(raw))))
    } else {
        Ok(Box::new(raw))
    }
}

/// The lines after the header, without their ends.
///
/// As an iterator it cannot say that reading failed: it ends, and [`Lines::finish`] tells why.
pub(crate) struct Lines {
    source: Source,
    path: PathBuf,
    bytes: Vec<u8>,
    error: Option<io::Error>,
}

impl Lines {
    /// Opens `path` (`-` is standard input), with `progress` counting the bytes read of it, and checks the header.
    pub(crate) fn open(path: &Path, progress: &ProgressBar) -> Result<Lines, Failure> {
        let source = if path.as_os_str() == "-" {
            decompress(progress.wrap_read(io::stdin()))
        } else {
            let file = File::open(path).map_err(|error| Failure::file("open", path, error))?;
            // A pipe or device has no length, and a bar without one counts.
            if let Ok(metadata) = file.metadata()
                && metadata.is_file()
            {
                progress.set_length(metadata.len());
            }
            decompress(progress.wrap_read(file))
        };
        let source = source.map_err(|error| Failure::file("read", path, error))?;
        Lines { source, path: path.to_owned(), bytes: Vec::new(), error: None }.check_header()
    }

    fn check_header(mut self) -> Result<Lines, Failure> {
        let mut header = String::new();
        self.append_line(&mut header);
        self.take_error()?;
        let names = header.strip_prefix('\u{feff}').unwrap_or(&header);
        if split(names, &mut None) == Ok(COLUMNS) {
            return Ok(self);
        }
        let expected = COLUMNS.join(",");
        Err(Failure::new(format!("{}: the first line is not the header {expected}", self.path.display())))
    }

    /// Appends the next line to `line`; `false` at the end.
    ///
    /// Of a line that is too long to be valid, only so much is kept that this still shows. What is not UTF-8 becomes
    /// U+FFFD, which no column admits. Both are thus rejected by whoever parses them, with their place in the input.
    pub(crate) fn append_line(&mut self, line: &mut String) -> bool {
        match self.read_line() {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                self.error = Some(error);
                return false;
            }
        }
        match str::from_utf8(&self.bytes) {
            Ok(text) => line.push_str(text),
            Err(_) => line.push_str(&String::from_utf8_lossy(&self.bytes)),
        }
        true
    }

    fn read_line(&mut self) -> io::Result<bool> {
        // Room for what makes a line too long, and for its end.
        const LIMIT: u64 = LINE_BYTES_MAX as u64 + 3;
        self.bytes.clear();
        if self.source.by_ref().take(LIMIT).read_until(b'\n', &mut self.bytes)? == 0 {
            return Ok(false);
        }
        if self.bytes.ends_with(b"\n") {
            self.bytes.pop();
            if self.bytes.ends_with(b"\r") {
                self.bytes.pop();
            }
        } else if self.bytes.len() as u64 == LIMIT {
            self.source.skip_until(b'\n')?;
        }
        Ok(true)
    }

    fn take_error(&mut self) -> Result<(), Failure> {
        match self.error.take() {
            Some(error) => Err(Failure::file("read", &self.path, error)),
            None => Ok(()),
        }
    }

    /// Whether the end that was met was the input's.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.take_error()
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        self.append_line(&mut line).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn lines(input: &[u8]) -> Lines {
        let source = decompress(Cursor::new(input.to_owned())).unwrap();
        Lines { source, path: "test".into(), bytes: Vec::new(), error: None }
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn line_ends_of_all_kinds() {
        assert_eq!(lines(b"a\r\n\nb").collect::<Vec<_>>(), ["a", "", "b"]);
        assert_eq!(lines(b"a\n").collect::<Vec<_>>(), ["a"]);
        assert_eq!(lines(b"").count(), 0);
        assert_eq!(lines(b"x").count(), 1);
    }

    #[test]
    fn gzip_in_several_members() {
        let input = [gzip(b"a\nb"), gzip(b"c\n")].concat();
        assert_eq!(lines(&input).collect::<Vec<_>>(), ["a", "bc"]);
    }

    #[test]
    fn truncated_gzip_is_an_error_and_not_the_end() {
        let mut input = gzip(b"a\nb\n");
        input.truncate(input.len() - 4);
        let mut lines = lines(&input);
        lines.by_ref().for_each(drop);
        assert!(
            matches!(lines.finish(), Err(Failure::Message(message)) if message.starts_with("cannot read test"))
        );
    }

    #[test]
    fn long_lines_are_cut_but_stay_too_long() {
        let longest = "x".repeat(LINE_BYTES_MAX);
        let input = format!("{longest}\r\n{longest}yy\n{longest}{longest}\nend\n");
        let lines: Vec<String> = lines(input.as_bytes()).collect();
        assert_eq!(lines[0], longest);
        assert!(lines[1].len() > LINE_BYTES_MAX && lines[2].len() > LINE_BYTES_MAX);
        assert_eq!(lines[3..], ["end"]);
    }

    #[test]
    fn what_is_not_utf8_is_marked() {
        assert_eq!(lines(b"a\xff,b\n").collect::<Vec<_>>(), ["a\u{fffd},b"]);
    }

    #[test]
    fn the_header_is_checked() {
        let header = COLUMNS.join(",");
        assert!(lines(format!("\u{feff}{header}\r\n").as_bytes()).check_header().is_ok());
        assert!(lines(header.replace("carrier", "\"carrier\"").as_bytes()).check_header().is_ok());
        assert!(lines(b"").check_header().is_err());
        assert!(lines(b"2013,1,1\n").check_header().is_err());
    }
}
