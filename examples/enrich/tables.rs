//! The tables that lines are looked up in, held in memory and shared by all workers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;

use csv::StringRecord;

use crate::failure::Failure;
use crate::flight::MISSING;
use crate::geo::Place;
use crate::input;

/// The key of a table: one to eight ASCII letters, digits or hyphens.
///
/// The text fits a machine word, so that a look-up hashes and compares one number, and needs no escaping in JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code<'a> {
    text: &'a str,
    key: u64,
}

impl<'a> Code<'a> {
    pub(crate) fn new(text: &'a str) -> Option<Code<'a>> {
        if text.is_empty() || text.len() > 8 {
            return None;
        }
        let mut key = 0;
        for byte in text.bytes() {
            if !byte.is_ascii_alphanumeric() && byte != b'-' {
                return None;
            }
            key = key << 8 | u64::from(byte);
        }
        Some(Code { text, key })
    }

    pub(crate) fn as_str(self) -> &'a str {
        self.text
    }
}

/// Text as a JSON string, quotes included: escaped once when the table is loaded, not once a line.
pub(crate) type JsonString = Box<str>;

#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) year_built: Option<i32>,
    pub(crate) manufacturer: Option<JsonString>,
    pub(crate) model: Option<JsonString>,
    pub(crate) seats: Option<i32>,
}

#[derive(Debug)]
pub(crate) struct Airport {
    pub(crate) name: Option<JsonString>,
    pub(crate) place: Option<Place>,
}

#[derive(Debug)]
pub(crate) struct Airline {
    pub(crate) name: Option<JsonString>,
}

#[derive(Debug)]
pub(crate) struct Tables {
    planes: Table<Plane>,
    airports: Table<Airport>,
    airlines: Table<Airline>,
}

impl Tables {
    pub(crate) fn load(planes: &Path, airports: &Path, airlines: &Path) -> Result<Tables, Failure> {
        Ok(Tables {
            planes: load(planes, ["tailnum", "year", "manufacturer", "model", "seats"], plane)?,
            airports: load(airports, ["faa", "name", "lat", "lon"], airport)?,
            airlines: load(airlines, ["carrier", "name"], airline)?,
        })
    }

    pub(crate) fn plane(&self, tailnum: Option<Code>) -> Option<&Plane> {
        self.planes.get(&tailnum?.key)
    }

    pub(crate) fn airport(&self, faa: Option<Code>) -> Option<&Airport> {
        self.airports.get(&faa?.key)
    }

    pub(crate) fn airline(&self, carrier: Option<Code>) -> Option<&Airline> {
        self.airlines.get(&carrier?.key)
    }
}

type Table<T> = HashMap<u64, T, BuildHasherDefault<CodeHasher>>;

/// Multiplies by 2⁶⁴ / φ and folds the well-mixed upper half onto the lower one, which `HashMap` picks its bucket by.
///
/// The keys of the tables are the operator's own, so there is nobody to defend against with a stronger hash.
#[derive(Default)]
struct CodeHasher(u64);

impl Hasher for CodeHasher {
    fn write_u64(&mut self, key: u64) {
        let product = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys of a table are u64");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Loads the table at `path`, whose first of `columns` is the key; `entry` makes an entry of the others.
fn load<T, const N: usize>(
    path: &Path,
    columns: [&str; N],
    entry: fn([&str; N]) -> Result<T, String>,
) -> Result<Table<T>, Failure> {
    let failure = |line: u64, error: &dyn std::fmt::Display| {
        Failure::new(format!("{}, line {line}: {error}", path.display()))
    };
    let mut reader = csv::Reader::from_reader(input::open(path)?);
    let header = reader.headers().map_err(|error| Failure::file("read", path, error))?;
    let indexes = find_columns(header, columns).map_err(|error| failure(1, &error))?;

    let mut table = Table::default();
    let mut record = StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(table),
            Err(error) => return Err(Failure::file("read", path, error)),
        }
        let line = record.position().map_or(0, |position| position.line());
        // The reader has checked that every record is as long as the header.
        let fields = indexes.map(|index| &record[index]);
        let code = Code::new(fields[0])
            .ok_or_else(|| failure(line, &format!("{}: {:?} is not a code", columns[0], fields[0])))?;
        table.insert(code.key, entry(fields).map_err(|error| failure(line, &error))?);
    }
}

fn find_columns<const N: usize>(header: &StringRecord, columns: [&str; N]) -> Result<[usize; N], String> {
    let mut indexes = [0; N];
    for (index, column) in indexes.iter_mut().zip(columns) {
        *index = header
            .iter()
            .position(|name| name == column)
            .ok_or_else(|| format!("the header has no column {column:?}"))?;
    }
    Ok(indexes)
}

fn plane([_, year, manufacturer, model, seats]: [&str; 5]) -> Result<Plane, String> {
    Ok(Plane {
        year_built: number(year)?,
        manufacturer: json_string(manufacturer),
        model: json_string(model),
        seats: number(seats)?,
    })
}

fn airport([_, name, latitude, longitude]: [&str; 4]) -> Result<Airport, String> {
    let degrees: (Option<f64>, Option<f64>) = (number(latitude)?, number(longitude)?);
    let place = match degrees {
        (Some(latitude), Some(longitude)) => {
            if !(latitude.abs() <= 90.0 && longitude.abs() <= 180.0) {
                return Err(format!("{latitude}, {longitude} is no place on earth"));
            }
            Some(Place::new(latitude, longitude))
        }
        _ => None,
    };
    Ok(Airport { name: json_string(name), place })
}

fn airline([_, name]: [&str; 2]) -> Result<Airline, String> {
    Ok(Airline { name: json_string(name) })
}

fn number<T: std::str::FromStr>(text: &str) -> Result<Option<T>, String> {
    if text == MISSING {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{text:?} is not a number"))
}

fn json_string(text: &str) -> Option<JsonString> {
    (text != MISSING).then(|| serde_json::Value::from(text).to_string().into_boxed_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Tables with one entry each, and one airport whose name needs escaping.
    pub(crate) fn small() -> Tables {
        let key = |code| Code::new(code).unwrap().key;
        let planes = [(key("N14228"), plane(["", "1999", "BOEING", "737-824", "149"]).unwrap())];
        let airports = [
            (key("EWR"), airport(["", "Newark Liberty Intl", "40.6925", "-74.168667"]).unwrap()),
            (key("IAH"), airport(["", "George \"Bush\"\n", "29.984433", "-95.341442"]).unwrap()),
        ];
        let airlines = [(key("UA"), airline(["", "United Air Lines Inc."]).unwrap())];
        Tables {
            planes: planes.into_iter().collect(),
            airports: airports.into_iter().collect(),
            airlines: airlines.into_iter().collect(),
        }
    }

    #[test]
    fn codes() {
        assert_eq!(Code::new("N-14228A").unwrap().as_str(), "N-14228A");
        assert_ne!(Code::new("A").unwrap().key, Code::new("AA").unwrap().key);
        for text in ["", "N14228ABC", "a\"b", "a b", "ü", "\u{fffd}"] {
            assert!(Code::new(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn missing_keys_and_entries_are_none() {
        let tables = small();
        assert!(tables.plane(Code::new("N14228")).is_some());
        assert!(tables.plane(Code::new("N14229")).is_none());
        assert!(tables.plane(None).is_none());
        assert!(tables.airport(Code::new("SJU")).is_none());
        assert!(tables.airline(Code::new("XX")).is_none());
    }

    #[test]
    fn entries_may_have_missing_values() {
        let plane = plane(["N1", "NA", "NA", "A\tB", "NA"]).unwrap();
        assert!(plane.year_built.is_none() && plane.manufacturer.is_none() && plane.seats.is_none());
        assert_eq!(plane.model.as_deref(), Some(r#""A\tB""#));
        assert!(airport(["X", "name", "NA", "1"]).unwrap().place.is_none());
        assert!(airport(["X", "name", "91", "1"]).is_err());
        assert!(airport(["X", "name", "NaN", "1"]).is_err());
        assert!(airport(["X", "name", "x", "1"]).is_err());
    }

    #[test]
    fn the_tables_of_the_sample_load() {
        let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data"));
        let file = |name| data.join(name);
        let tables = Tables::load(&file("planes.csv"), &file("airports.csv"), &file("airlines.csv")).unwrap();
        assert_eq!((tables.planes.len(), tables.airports.len(), tables.airlines.len()), (3322, 1458, 16));
        assert_eq!(tables.plane(Code::new("N10156")).unwrap().seats, Some(55));

        let Err(Failure::Message(message)) =
            Tables::load(&file("airlines.csv"), &file("airports.csv"), &file("airlines.csv"))
        else {
            panic!("airlines passed for planes");
        };
        assert!(
            message.ends_with(r#"airlines.csv, line 1: the header has no column "tailnum""#),
            "{message}"
        );
    }
}
