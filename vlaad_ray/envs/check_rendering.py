"""`python -m vlaad_ray.envs.check_rendering`: draw one frame without a screen and print the OpenGL driver, or fail.

A process of its own, since a library that does not fit may end it without a word. MUJOCO_GL says how to draw: egl.
"""

import cv2  # noqa: F401  robosuite imports it, and it needs libGL and GLib itself
import mujoco
from OpenGL import GL

SCENE = """<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size="0.3"/></worldbody></mujoco>"""


def draw() -> str:
    """The OpenGL driver's name. Raises what MuJoCo or OpenGL do."""
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 32, 32) as renderer:
        renderer.update_scene(data)
        if not renderer.render().any():
            raise SystemExit("the rendered frame is black")
        return str(GL.glGetString(GL.GL_RENDERER).decode())


if __name__ == "__main__":
    print(draw())
