//! Schemas of what is a text in JSON and something else here.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

macro_rules! texts {
    ($($kind:ty, $name:literal, $pattern:literal;)*) => {
        $(impl JsonSchema for $kind {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern})
            }
        })*
    };
}

texts! {
    crate::id::Mac, "Mac", "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$";
    crate::sign::PublicKey, "PublicKey", "^[0-9a-f]{64}$";
    crate::erase::Psid, "Psid", "^[0-9A-Za-z]{32}$";
    crate::layout::Amount, "Amount", "^([0-9]+ ?([KMGT]iB|%)|rest)$";
}
