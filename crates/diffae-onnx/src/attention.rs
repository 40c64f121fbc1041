//! Self-attention over pixels.

use crate::error::Result;
use crate::graph::{GraphBuilder, integer, integers, signed};
use crate::layers::Map;

impl GraphBuilder<'_> {
    /// `x + proj(softmax(q^T k / sqrt(C / heads)) v)`, the softmax in f32.
    ///
    /// The channels of the projection are in order head, then q, k, v, as [`diffae_kernels::attention`] reads them.
    pub(crate) fn attention(&mut self, path: &str, num_heads: usize, x: &Map) -> Result<Map> {
        let normalized = self.group_norm(&format!("{path}.norm"), x)?;
        let qkv = self.conv(&format!("{path}.qkv"), &normalized)?;
        let head_width = x.channels.checked_div(num_heads).unwrap_or(0);
        let by_head = [0, signed(num_heads), signed(3 * head_width), -1];
        let by_head = self.integers(path, "by_head", &by_head);
        let qkv = self.node(path, "Reshape", &[&qkv.value, &by_head], vec![]); // [N, heads, 3 C / heads, L]
        let [q, k, v] = self.split(path, &qkv, (2, [head_width; 3]));
        // Scaling q and k by the fourth root each keeps the products small in half precision.
        #[expect(clippy::cast_possible_truncation, reason = "a factor of f32 values")]
        let root = (head_width as f64).powf(-0.25) as f32;
        let [q, k] = [(q, "q_scale"), (k, "k_scale")].map(|(value, name)| {
            let scale = self.numbers(path, name, (&[root], &[1]))?;
            Ok(self.node(path, "Mul", &[&value, &scale], vec![]))
        });
        let (q, k): (Result<_>, Result<_>) = (q, k);
        let transposed = || vec![integers("perm", &[0, 1, 3, 2])];
        let q = self.node(path, "Transpose", &[&q?], transposed());
        let scores = self.node(path, "MatMul", &[&q, &k?], vec![]); // [N, heads, L, L]
        let scores = self.in_f32(&scores, path);
        let weights = self.node(path, "Softmax", &[&scores], vec![integer("axis", -1)]);
        let weights = self.in_precision(&weights, path);
        let v = self.node(path, "Transpose", &[&v], transposed());
        let y = self.node(path, "MatMul", &[&weights, &v], vec![]); // [N, heads, L, C / heads]
        let y = self.node(path, "Transpose", &[&y], transposed());
        let size = signed(x.size);
        let shape = self.integers(path, "shape", &[0, signed(x.channels), size, size]);
        let y = x.with(self.node(path, "Reshape", &[&y, &shape], vec![]));
        let y = self.conv(&format!("{path}.proj_out"), &y)?;
        Ok(x.with(self.add(path, &x.value, &y.value)))
    }
}
