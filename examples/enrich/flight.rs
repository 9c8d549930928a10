//! One line of the flights table.

use csv::StringRecord;

use crate::split::split;
use crate::tables::Code;

/// The columns of the flights table, as its header names them.
pub(crate) const COLUMNS: [&str; 19] = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
    "hour",
    "minute",
    "time_hour",
];

/// How the data writes a value that is missing. It may stand in any column.
pub(crate) const MISSING: &str = "NA";

/// A parsed line, borrowed from it. Whatever is a string in here is free of characters that JSON escapes.
#[derive(Debug)]
pub(crate) struct Flight<'a> {
    pub(crate) date: Option<Date>,
    pub(crate) dep_time: Option<Clock>,
    pub(crate) sched_dep_time: Option<Clock>,
    pub(crate) dep_delay: Option<i32>,
    pub(crate) arr_time: Option<Clock>,
    pub(crate) sched_arr_time: Option<Clock>,
    pub(crate) arr_delay: Option<i32>,
    pub(crate) carrier: Option<Code<'a>>,
    pub(crate) flight: Option<i32>,
    pub(crate) tailnum: Option<Code<'a>>,
    pub(crate) origin: Option<Code<'a>>,
    pub(crate) dest: Option<Code<'a>>,
    pub(crate) air_time: Option<i32>,
    pub(crate) distance: Option<i32>,
    pub(crate) time_hour: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Date {
    pub(crate) year: i32,
    pub(crate) month: i32,
    pub(crate) day: i32,
}

/// A local time of day. The data has midnight at the end of a day as 24:00.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clock {
    pub(crate) hour: i32,
    pub(crate) minute: i32,
}

impl<'a> Flight<'a> {
    /// Parses `line`; the error is the reason for a reject. Every column is checked, those without a use as well.
    pub(crate) fn parse(line: &'a str, unquoted: &'a mut Option<StringRecord>) -> Result<Flight<'a>, String> {
        let fields: [&str; COLUMNS.len()] = split(line, unquoted)?;
        let field = |column: usize| Field { column: COLUMNS[column], text: fields[column] };
        field(16).number(0..=24)?;
        field(17).number(0..=59)?;
        Ok(Flight {
            date: date(field(0), field(1), field(2))?,
            dep_time: field(3).clock()?,
            sched_dep_time: field(4).clock()?,
            dep_delay: field(5).number(..)?,
            arr_time: field(6).clock()?,
            sched_arr_time: field(7).clock()?,
            arr_delay: field(8).number(..)?,
            carrier: field(9).code()?,
            flight: field(10).number(0..)?,
            tailnum: field(11).code()?,
            origin: field(12).code()?,
            dest: field(13).code()?,
            air_time: field(14).number(0..)?,
            distance: field(15).number(0..)?,
            time_hour: field(18).timestamp()?,
        })
    }
}

fn date(year: Field, month: Field, day: Field) -> Result<Option<Date>, String> {
    let parts = (year.number(1..=9999)?, month.number(1..=12)?, day.number(1..=31)?);
    let (Some(year), Some(month), Some(day_of_month)) = parts else { return Ok(None) };
    if day_of_month > days_in(year, month) {
        return Err(day.wrong("a day of that month"));
    }
    Ok(Some(Date { year, month, day: day_of_month }))
}

fn days_in(year: i32, month: i32) -> i32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[derive(Clone, Copy)]
struct Field<'a> {
    column: &'static str,
    text: &'a str,
}

impl<'a> Field<'a> {
    fn number(self, range: impl std::ops::RangeBounds<i32>) -> Result<Option<i32>, String> {
        if self.text == MISSING {
            return Ok(None);
        }
        let number = parse_number(self.text).ok_or_else(|| self.wrong("a number"))?;
        if range.contains(&number) { Ok(Some(number)) } else { Err(self.wrong("in range")) }
    }

    /// `517` is 5:17, `5` is 0:05.
    fn clock(self) -> Result<Option<Clock>, String> {
        let Some(number) = self.number(..)? else { return Ok(None) };
        let clock = Clock { hour: number / 100, minute: number % 100 };
        let valid = (0..=2400).contains(&number) && clock.minute < 60;
        if valid { Ok(Some(clock)) } else { Err(self.wrong("a time of day")) }
    }

    fn code(self) -> Result<Option<Code<'a>>, String> {
        if self.text == MISSING {
            return Ok(None);
        }
        Code::new(self.text).map(Some).ok_or_else(|| self.wrong("a code of letters and digits"))
    }

    fn timestamp(self) -> Result<Option<&'a str>, String> {
        if self.text == MISSING {
            return Ok(None);
        }
        let pattern = b"0000-00-00T00:00:00Z";
        let matches = |(byte, expected): (u8, &u8)| match expected {
            b'0' => byte.is_ascii_digit(),
            _ => byte == *expected,
        };
        let valid = self.text.len() == pattern.len() && self.text.bytes().zip(pattern).all(matches);
        if valid { Ok(Some(self.text)) } else { Err(self.wrong("a UTC timestamp")) }
    }

    #[cold]
    fn wrong(self, expected: &str) -> String {
        /// Enough to recognise the field by; the list of rejects must not grow with the rubbish in the input.
        const SHOWN_CHARS: usize = 40;
        let mut shown: String = self.text.chars().take(SHOWN_CHARS).collect();
        if shown.len() < self.text.len() {
            shown.push('…');
        }
        format!("{}: {shown:?} is not {expected}", self.column)
    }
}

/// At most six digits and a minus sign. The bound keeps a record's length bounded too.
fn parse_number(text: &str) -> Option<i32> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || digits.len() > 6 {
        return None;
    }
    let mut number = 0;
    for byte in digits.bytes() {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + i32::from(byte - b'0');
    }
    Some(if digits.len() < text.len() { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "2013,1,1,517,515,2,830,819,-11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z";

    fn reason(line: &str) -> String {
        Flight::parse(line, &mut None).unwrap_err()
    }

    #[test]
    fn parses_a_line() {
        let mut unquoted = None;
        let flight = Flight::parse(LINE, &mut unquoted).unwrap();
        assert_eq!(flight.date, Some(Date { year: 2013, month: 1, day: 1 }));
        assert_eq!(flight.dep_time, Some(Clock { hour: 5, minute: 17 }));
        assert_eq!(flight.arr_delay, Some(-11));
        assert_eq!(flight.tailnum.unwrap().as_str(), "N14228");
        assert_eq!(flight.air_time, Some(227));
        assert_eq!(flight.time_hour, Some("2013-01-01T10:00:00Z"));
    }

    #[test]
    fn quotes_around_fields_make_no_difference() {
        let quoted = LINE.replace("UA", "\"UA\"").replace("1400", "\"1400\"");
        let (mut plain_fields, mut quoted_fields) = (None, None);
        let plain = Flight::parse(LINE, &mut plain_fields).unwrap();
        assert_eq!(
            format!("{plain:?}"),
            format!("{:?}", Flight::parse(&quoted, &mut quoted_fields).unwrap())
        );
    }

    #[test]
    fn every_value_may_be_missing() {
        let mut unquoted = None;
        let line = ["NA"; COLUMNS.len()].join(",");
        let flight = Flight::parse(&line, &mut unquoted).unwrap();
        assert!(flight.date.is_none() && flight.tailnum.is_none() && flight.time_hour.is_none());
    }

    #[test]
    fn times_run_to_midnight() {
        let clock = |text| Field { column: "dep_time", text }.clock();
        assert_eq!(clock("2400").unwrap(), Some(Clock { hour: 24, minute: 0 }));
        assert_eq!(clock("1").unwrap(), Some(Clock { hour: 0, minute: 1 }));
        assert!(clock("2401").is_err() && clock("1260").is_err() && clock("-5").is_err());
    }

    #[test]
    fn reasons_name_the_column_and_the_value() {
        assert_eq!(reason("abc"), "1 field instead of 19");
        assert_eq!(reason(&LINE.replace(",227,", ",2x7,")), r#"air_time: "2x7" is not a number"#);
        assert_eq!(reason(&LINE.replace(",227,", ",,")), r#"air_time: "" is not a number"#);
        assert_eq!(reason(&LINE.replace("2013,1,1,", "2013,13,1,")), r#"month: "13" is not in range"#);
        assert_eq!(
            reason(&LINE.replace("2013,1,1,", "2013,2,29,")),
            r#"day: "29" is not a day of that month"#
        );
        assert_eq!(
            reason(&LINE.replace("N14228", "N\u{fffd}")),
            "tailnum: \"N\u{fffd}\" is not a code of letters and digits"
        );
        assert_eq!(
            reason(&LINE.replace("T10:", " 10:")),
            r#"time_hour: "2013-01-01 10:00:00Z" is not a UTC timestamp"#
        );
    }

    #[test]
    fn long_values_are_shortened() {
        let reason = reason(&LINE.replace("1545", &"9".repeat(500)));
        assert!(reason.len() < 100 && reason.contains('…'), "{reason}");
    }

    #[test]
    fn numbers() {
        assert_eq!(parse_number("-43"), Some(-43));
        assert_eq!(parse_number("999999"), Some(999_999));
        for text in ["", "-", "--1", "+1", "1.5", "1000000", "٣"] {
            assert_eq!(parse_number(text), None, "{text}");
        }
    }
}
