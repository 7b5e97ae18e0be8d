// bias_act, one element: y = clamp(gain * f(x + b)), its derivative, and the derivative of that.
#pragma once
#include "element.h"

namespace hx {

enum Act { LINEAR, RELU, LRELU, GELU, SIGMOID, TANH, SWISH };

// f(z), f'(z) and f''(z). The piecewise linear ones need only the sign of z, so y may stand in for z.
template <int ACT, int ORDER, class A> HX_FN A act(A z, A alpha) {
  if (ACT == LINEAR) return ORDER == 0 ? z : A(ORDER == 1);
  if (ACT == RELU) return ORDER == 0 ? (z <= 0 ? A(0) : z) : A(ORDER == 1 && !(z <= 0));
  if (ACT == LRELU) return ORDER == 0 ? (z <= 0 ? z * alpha : z) : ORDER == 1 ? (z <= 0 ? alpha : A(1)) : A(0);
  if (ACT == GELU) {  // z Phi(z): Phi the normal distribution function, phi = Phi' its density, Phi'' = -z phi
    A cdf = A(.5) * (1 + std::erf(z * A(.70710678118654752440)));
    if (ORDER == 0) return z * cdf;
    A pdf = A(.39894228040143267794) * std::exp(A(-.5) * z * z);
    return ORDER == 1 ? cdf + z * pdf : pdf * (2 - z * z);
  }
  if (ACT == TANH) {
    A t = std::tanh(z), d = 1 - t * t;
    return ORDER == 0 ? t : ORDER == 1 ? d : -2 * t * d;
  }
  A s = 1 / (1 + std::exp(-z)), d = s * (1 - s);
  if (ACT == SIGMOID) return ORDER == 0 ? s : ORDER == 1 ? d : d * (1 - 2 * s);
  return ORDER == 0 ? z * s : ORDER == 1 ? s + z * d : d * (2 + z * (1 - 2 * s));  // swish
}

// ORDER 0: x is the input. 1: dy times dy/dx. 2: dy times u times d2y/dx2. For 1 and 2, x is the input, or y itself where the
// activation is piecewise linear (FROM_Y). Where the clamp bites the function is flat; infinity is no clamp.
template <int ACT, int ORDER, bool FROM_Y, class A>
HX_FN A bias_act_at(A x, A b, A dy, A u, A alpha, A gain, A clamp) {
  A z = FROM_Y ? x : x + b;
  if (ORDER == 0) {
    A y = gain * act<ACT, 0>(z, alpha);
    return y < -clamp ? -clamp : y > clamp ? clamp : y;  // NaN passes
  }
  A d = dy * gain * act<ACT, ORDER>(z, alpha) * (ORDER == 2 ? u : A(1));
  A y = FROM_Y ? x : gain * act<ACT, 0>(z, alpha);
  return y <= -clamp || y >= clamp ? A(0) : d;
}

// calls f with the activation as a compile-time constant
template <int V> struct Const { static constexpr int value = V; };
template <class F> int with_act(int a, F f) {
  switch (a) {
    case LINEAR: f(Const<LINEAR>()); return 0;
    case RELU: f(Const<RELU>()); return 0;
    case LRELU: f(Const<LRELU>()); return 0;
    case GELU: f(Const<GELU>()); return 0;
    case SIGMOID: f(Const<SIGMOID>()); return 0;
    case TANH: f(Const<TANH>()); return 0;
    case SWISH: f(Const<SWISH>()); return 0;
  }
  return 1;
}

}  // namespace hx
