//! Numbers as people read them, alike in every room's sentences.

use std::time::Duration;

/// `1.5 KiB`, rounded down: exact figures are for machines, and for naming a drive.
pub fn bytes(n: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(size, _)| n >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", n / size, n % size * 10 / size),
        None => format!("{n} B"),
    }
}

/// `86.1 MB/s`, in the units that networks and drives are sold by.
pub fn rate(bytes: u64, took: Duration) -> String {
    const UNITS: [(u128, &str); 3] = [(1_000_000_000, "GB/s"), (1_000_000, "MB/s"), (1_000, "kB/s")];
    let per_second = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
    match UNITS.into_iter().find(|(size, _)| per_second >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", per_second / size, per_second % size * 10 / size),
        None => format!("{per_second} B/s"),
    }
}

/// `8,123,456`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `a, b and c`.
pub fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut words: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match (words.pop(), words.is_empty()) {
        (None, _) => String::new(),
        (Some(last), true) => last,
        (Some(last), false) => format!("{} and {last}", words.join(", ")),
    }
}

/// `1 drive`, `2 drives`.
pub fn count(n: usize, one: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {one}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (n, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(n), want);
        }
    }

    #[test]
    fn rates_read_well() {
        for (n, ms, want) in [
            (8_123_456, 90, "90.2 MB/s"),
            (0, 5, "0 B/s"),
            (999, 1000, "999 B/s"),
            (1500, 1000, "1.5 kB/s"),
            (3 << 30, 1000, "3.2 GB/s"),
            (u64::MAX, 0, "18446744073709551615.0 GB/s"),
        ] {
            assert_eq!(rate(n, Duration::from_millis(ms)), want);
        }
    }

    #[test]
    fn long_numbers_are_grouped() {
        let want = ["0", "999", "1,000", "8,123,456", "18,446,744,073,709,551,615"];
        assert_eq!([0, 999, 1000, 8_123_456, u64::MAX].map(grouped), want);
    }

    #[test]
    fn the_last_comes_after_an_and() {
        let lists = [&[][..], &["a"], &["a", "b"], &["a", "b", "c"]].map(|items| list(items.iter()));
        assert_eq!(lists, ["", "a", "a and b", "a, b and c"]);
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|n| count(n, "disk")), ["0 disks", "1 disk", "2 disks"]);
    }
}
