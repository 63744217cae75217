"""Renders one headless frame with MuJoCo's EGL backend and prints the OpenGL driver; fails when that is impossible."""

import cv2  # noqa: F401  robosuite imports it, and it needs libGL and GLib itself
import mujoco
from OpenGL import GL

SCENE = """<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size="0.3"/></worldbody></mujoco>"""

model = mujoco.MjModel.from_xml_string(SCENE)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    if not renderer.render().any():
        raise SystemExit("the rendered frame is black")
    print(GL.glGetString(GL.GL_RENDERER).decode())
