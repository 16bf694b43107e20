//! Where images come from: what boot servers with a control API bring into their directories of images by themselves.

use serde::{Deserialize, Serialize};

use super::{Kind, Labels, common};
use crate::faults::{Faults, Findings, shown};
use crate::manifest::{PACKS, is_hash, is_plain_name};

/// Either of a store of published images, whose manifest says who signed it, or one tarball, which each boot server
/// compiles and signs itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// `NAME/VERSION` of what comes of it; of a store that can be listed also `NAME`, for the newest, and newer ones later.
    pub image: String,
    /// `s3://BUCKET/PREFIX`, the http:// or https:// address of a directory, or a directory of the boot server's own host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// http:// or https:// address of a tar of a root file system or of a raw disk, or a file of the boot server's own host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What `url` has to hash to. Default: what lies beside it, `.sha256` or else `.md5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Take `url` as it comes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchecked: bool,
    /// Kernel arguments that the image of `url` needs, without `root=`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
}

const LONGEST_ADDRESS: usize = 2048;
/// As much as a kernel takes, with room for what everybody adds.
const LONGEST_CMDLINE: usize = 1024;

impl Kind for ImageSource {
    const NAME: &'static str = "image-source";
    const PLURAL: &'static str = "image-sources";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        let (name, version) = self.parts();
        let is_one = is_plain_name(name) && name != PACKS && version.is_none_or(is_plain_name);
        findings.unless(is_one, "image", || {
            format!("{} is not an image: it looks like debian-12/12.8", shown(&self.image))
        });
        match (&self.store, &self.url) {
            (Some(store), None) => self.check_store(store, &mut findings),
            (None, Some(url)) => self.check_url(url, &mut findings),
            (Some(_), Some(_)) => findings.unless(false, "url", || "an image has one source: give store or url".into()),
            (None, None) => findings.unless(false, "store", || "say where it's from: store or url".into()),
        }
        findings.verdict()
    }
}

impl ImageSource {
    /// `name/version` of what is compiled here. What is in a store is signed by somebody else.
    pub fn compiled(&self) -> Option<&str> {
        self.url.is_some().then_some(&self.image)
    }

    /// Name, and the version if it's one alone.
    pub fn parts(&self) -> (&str, Option<&str>) {
        self.image.split_once('/').map_or((&self.image, None), |(name, version)| (name, Some(version)))
    }

    /// Whether `image`, a `NAME/VERSION` or `NAME`, is or may come to be what this brings as well.
    pub fn may_bring(&self, image: &str) -> bool {
        let (name, version) = image.split_once('/').map_or((image, None), |(name, version)| (name, Some(version)));
        let (its, its_version) = self.parts();
        its == name && version.zip(its_version).is_none_or(|(one, other)| one == other)
    }

    /// Whether both may bring the same image from different places, or one is as good as the other.
    pub fn clashes(&self, other: &Self) -> bool {
        // What is published never changes, so that the newest of a store and one of its versions get on.
        let same_store = self.store.is_some() && self.store == other.store && self.image != other.image;
        self.may_bring(&other.image) && !same_store
    }

    fn check_store(&self, store: &str, findings: &mut Findings) {
        let bucket = store.strip_prefix("s3://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        check_address(
            store,
            bucket,
            "a store: it looks like s3://BUCKET/PREFIX, https://HOST/PATH or /srv/images",
            "store",
            findings,
        );
        let version = self.parts().1;
        findings.unless(!is_web(store) || version.is_some(), "image", || {
            "it names no version, and a plain HTTP server can't say which is its newest: give NAME/VERSION".into()
        });
        let why = || "that is of a url: what is in a store says itself, under its signature".to_owned();
        findings.unless(self.sha256.is_none(), "sha256", why);
        findings.unless(!self.unchecked, "unchecked", why);
        findings.unless(self.cmdline.is_empty(), "cmdline", why);
    }

    fn check_url(&self, url: &str, findings: &mut Findings) {
        check_address(url, false, "a tarball: it looks like https://HOST/PATH or /srv/debian-12.tar", "url", findings);
        findings.unless(self.parts().1.is_some(), "image", || "say which version of it this is: NAME/VERSION".into());
        if let Some(sha256) = &self.sha256 {
            findings.unless(is_hash(sha256), "sha256", || {
                format!("{} is not a SHA-256 in 64 small hexadecimal digits", shown(sha256))
            });
            findings.unless(!self.unchecked, "unchecked", || "it can't be unchecked and have a sha256".into());
        }
        let is_plain = self.cmdline.is_ascii() && !self.cmdline.chars().any(|c| c.is_control());
        findings.unless(is_plain && self.cmdline.len() <= LONGEST_CMDLINE, "cmdline", || {
            format!("kernel arguments are one line of up to {LONGEST_CMDLINE} ASCII characters")
        });
    }
}

fn is_web(address: &str) -> bool {
    address.starts_with("http://") || address.starts_with("https://")
}

/// `is_known` if it's of a kind that only some addresses are.
fn check_address(address: &str, is_known: bool, what: &str, at: &str, findings: &mut Findings) {
    let rest = address.split_once("://").map(|(_, rest)| rest).unwrap_or_default();
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_path = address.starts_with('/') && address.len() > 1;
    let is_one = is_known || is_web(address) && !host.is_empty() || is_path;
    let is_one_word = !address.chars().any(|c| c.is_control() || c.is_whitespace());
    findings.unless(address.len() <= LONGEST_ADDRESS && is_one_word && is_one, at, || {
        format!("{} is not the address of {what}", shown(address))
    });
    // Whoever may see everything reads it, and so does the audit.
    findings.unless(!host.contains('@'), at, || {
        "a password in an address would be there for everybody to read; let the server do without, or use a file".into()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn of(image: &str, store: &str, url: &str) -> ImageSource {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ImageSource { name: "x".into(), image: image.into(), store: some(store), url: some(url), ..Default::default() }
    }

    #[test]
    fn each_is_one_thing_from_one_place() {
        let checked = |source: ImageSource| ImageSource { sha256: Some(SHA256.into()), ..source };
        let unchecked = |source: ImageSource| ImageSource { unchecked: true, ..source };
        let started = |source: ImageSource, cmdline: &str| ImageSource { cmdline: cmdline.into(), ..source };
        let tar = || of("debian/12", "", "https://h/debian.tar.zst");
        let bucket = || of("debian", "s3://b/prod", "");
        for (name, source, want) in [
            ("a tarball with a hash beside it", tar(), ""),
            ("a tarball with a hash", checked(tar()), ""),
            ("a tarball as it comes", started(unchecked(tar()), "console=ttyS0"), ""),
            ("a file", of("debian/12", "", "/srv/debian.tar"), ""),
            ("the newest of a bucket", bucket(), ""),
            ("one of a directory", of("debian/12", "/srv/images", ""), ""),
            ("one of a web server", of("debian/12", "https://h/images", ""), ""),
            ("from nowhere", of("debian/12", "", ""), "store"),
            ("from two places", of("debian/12", "s3://b", "https://h/x"), "url"),
            ("no image", of("", "s3://b", ""), "image"),
            ("a way out", of("../debian/12", "s3://b", ""), "image"),
            ("where packs are", of("packs/12", "s3://b", ""), "image"),
            ("no version of a tarball", of("debian", "", "https://h/x"), "image"),
            ("the newest of a web server", of("debian", "https://h/images", ""), "image"),
            ("another protocol", of("debian/12", "ftp://h/images", ""), "store"),
            ("no bucket", of("debian/12", "s3://", ""), "store"),
            ("no host", of("debian/12", "", "https://"), "url"),
            ("a file that is relative", of("debian/12", "", "debian.tar"), "url"),
            ("a password", of("debian/12", "", "https://me:secret@h/x"), "url"),
            ("two lines", of("debian/12", "", "https://h/x\nhttps://h/y"), "url"),
            ("no hash", ImageSource { sha256: Some("abc".into()), ..tar() }, "sha256"),
            ("a hash and none", checked(unchecked(tar())), "unchecked"),
            ("two lines of arguments", started(tar(), "a\nb"), "cmdline"),
            ("a hash of a store", checked(bucket()), "sha256"),
            ("a store as it comes", unchecked(bucket()), "unchecked"),
            ("arguments of a store", started(bucket(), "quiet"), "cmdline"),
        ] {
            let faults = source.check().err().map(|faults| faults.0).unwrap_or_default();
            let at: Vec<_> = faults.iter().map(|fault| fault.at.as_str()).collect();
            assert_eq!(at, if want.is_empty() { vec![] } else { vec![want] }, "{name}: {faults:?}");
        }
    }

    #[test]
    fn no_image_has_two_sources() {
        let (tar, store) = ("https://h/debian.tar", "s3://b");
        for (name, one, other, want) in [
            ("two versions", of("debian/1", "", tar), of("debian/2", "", tar), false),
            ("one version twice", of("debian/1", "", tar), of("debian/1", "", "https://h/another.tar"), true),
            ("another image", of("debian", store, ""), of("debian-12", store, ""), false),
            ("compiled and from a store", of("debian/1", "", tar), of("debian/1", store, ""), true),
            ("compiled and perhaps a store's newest", of("debian/1", "", tar), of("debian", store, ""), true),
            ("a store's newest and one of its versions", of("debian", store, ""), of("debian/1", store, ""), false),
            ("another store's newest", of("debian", store, ""), of("debian/1", "s3://c", ""), true),
            ("the same twice", of("debian", store, ""), of("debian", store, ""), true),
        ] {
            assert_eq!((one.clashes(&other), other.clashes(&one)), (want, want), "{name}");
        }
    }
}
