//! Writes one flat JSON object into a `String`, without a value tree in between.

use crate::flight::{Clock, Date};
use crate::tables::Code;

/// The object under construction. Keys are plain identifiers and go in as they are.
pub(crate) struct Object<'a> {
    out: &'a mut String,
    separator: char,
}

// Inlined throughout, keys and punctuation become constants to store: a tenth of the time of the whole job.
impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut String) -> Object<'a> {
        Object { out, separator: '{' }
    }

    pub(crate) fn end(self) {
        debug_assert_eq!(self.separator, ',', "an object has at least one field");
        self.out.push('}');
    }

    /// `value` is JSON already.
    #[inline(always)]
    pub(crate) fn json(&mut self, key: &str, value: Option<&str>) {
        self.value(key, value, |out, value| out.push_str(value));
    }

    /// `value` has no character that JSON escapes.
    #[inline(always)]
    pub(crate) fn plain(&mut self, key: &str, value: Option<&str>) {
        self.quoted(key, value, |out, value| out.push_str(value));
    }

    #[inline(always)]
    pub(crate) fn code(&mut self, key: &str, value: Option<Code>) {
        self.plain(key, value.map(Code::as_str));
    }

    #[inline(always)]
    pub(crate) fn int(&mut self, key: &str, value: Option<i32>) {
        self.value(key, value, |out, value| {
            if value < 0 {
                out.push('-');
            }
            push_number(out, value.unsigned_abs().into());
        });
    }

    /// A non-negative number with one decimal. Rounding to a whole number of tenths first makes the text a function
    /// of that integer alone, and spares the general float formatter.
    #[inline(always)]
    pub(crate) fn tenths(&mut self, key: &str, value: Option<f64>) {
        self.value(key, value, |out, value| {
            debug_assert!(value >= 0.0);
            let tenths = (value * 10.0).round() as u64;
            push_number(out, tenths / 10);
            out.push('.');
            push_number(out, tenths % 10);
        });
    }

    #[inline(always)]
    pub(crate) fn date(&mut self, key: &str, value: Option<Date>) {
        self.quoted(key, value, |out, date| {
            push_pair(out, date.year / 100);
            push_pair(out, date.year % 100);
            out.push('-');
            push_pair(out, date.month);
            out.push('-');
            push_pair(out, date.day);
        });
    }

    #[inline(always)]
    pub(crate) fn clock(&mut self, key: &str, value: Option<Clock>) {
        self.quoted(key, value, |out, clock| {
            push_pair(out, clock.hour);
            out.push(':');
            push_pair(out, clock.minute);
        });
    }

    #[inline(always)]
    fn quoted<T>(&mut self, key: &str, value: Option<T>, write: impl FnOnce(&mut String, T)) {
        self.value(key, value, |out, value| {
            out.push('"');
            write(out, value);
            out.push('"');
        });
    }

    #[inline(always)]
    fn value<T>(&mut self, key: &str, value: Option<T>, write: impl FnOnce(&mut String, T)) {
        self.out.push(self.separator);
        self.separator = ',';
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
        match value {
            Some(value) => write(self.out, value),
            None => self.out.push_str("null"),
        }
    }
}

/// `number` in decimal.
fn push_number(out: &mut String, number: u64) {
    if number >= 100 {
        push_number(out, number / 100);
    }
    match number {
        0..10 => out.push_str(&PAIRS[number as usize * 2 + 1..][..1]),
        _ => push_pair(out, (number % 100) as i32),
    }
}

/// `number`, which is below 100, in two digits.
fn push_pair(out: &mut String, number: i32) {
    out.push_str(&PAIRS[number as usize * 2..][..2]);
}

/// Two digits at a time halve the divisions.
const PAIRS: &str = "\
    0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849\
    5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in (0..=1010).chain([9_999, 10_000, 123_456, 1_000_007, u64::MAX]) {
            let mut out = String::new();
            push_number(&mut out, number);
            assert_eq!(out, number.to_string());
        }
        for number in 0..100 {
            let mut out = String::new();
            push_pair(&mut out, number);
            assert_eq!(out, format!("{number:02}"));
        }
    }

    #[test]
    fn an_object_of_every_kind_is_valid_json() {
        let mut out = String::from("before ");
        let mut object = Object::begin(&mut out);
        object.json("a", Some(r#""x\"y""#));
        object.plain("b", Some("z"));
        object.int("c", Some(-43));
        object.tenths("d", Some(2252.96));
        object.date("e", Some(Date { year: 2013, month: 1, day: 31 }));
        object.clock("f", Some(Clock { hour: 0, minute: 5 }));
        object.int("g", None);
        object.code("h", Code::new("N1"));
        object.tenths("i", Some(0.04));
        object.end();
        let expected = r#"{"a":"x\"y","b":"z","c":-43,"d":2253.0,"e":"2013-01-31","f":"00:05","g":null,"h":"N1","i":0.0}"#;
        assert_eq!(out, format!("before {expected}"));
        let value: serde_json::Value = serde_json::from_str(expected).unwrap();
        assert_eq!(value["d"], 2253.0);
    }
}
